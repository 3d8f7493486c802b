// Answers from the exported ONNX files by transformers.js: node run_transformers_js.mjs NODE_MODULES FOLDER QUESTIONS.
import { readFileSync } from 'node:fs';
import { dirname, basename, join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, folder, file] = process.argv.slice(2);
const at = join(modules, '@huggingface', 'transformers');
const about = JSON.parse(readFileSync(join(at, 'package.json')));
const { env, AutoProcessor, LlavaForConditionalGeneration, RawImage } = await import(
  pathToFileURL(join(at, 'dist', 'transformers.node.mjs'))
);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const name = basename(folder);
const processor = await AutoProcessor.from_pretrained(name);
const model = await LlavaForConditionalGeneration.from_pretrained(name);
const answers = [];
const tokens = [];
for (const asked of JSON.parse(readFileSync(file))) {
  const inputs = await processor(await RawImage.read(asked.image), asked.text);
  const all = await model.generate({ ...inputs, do_sample: false, max_new_tokens: asked.limit });
  const added = all.slice(null, [inputs.input_ids.dims.at(-1), null]);
  tokens.push(Array.from(added.data, Number));
  answers.push(processor.batch_decode(added, { skip_special_tokens: true })[0].trim());
}
console.log(JSON.stringify({ answers, tokens, 'transformers.js': about.version }));
