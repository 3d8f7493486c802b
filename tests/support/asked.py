"""Questions of the playground with the greedy tokens that `switchkd eval` generates for them: what runtimes are compared with."""

import json
from pathlib import Path

import torch

from switchkd_cli.engine.build import check_checkpoint
from switchkd_cli.engine.evaluation.generate import GreedyModel
from switchkd_cli.engine.evaluation.score_model import score_request
from switchkd_cli.recipe.schema import Evaluation

BENCHMARKS = ("gqa", "mme", "mmbench_cn_dev", "textvqa_val")
"""Open answers, yes or no, letters to Chinese questions, and words read from the image."""


class Recorder(GreedyModel):
    """Answers as `GreedyModel`, and keeps each question with its image and the new tokens."""

    def __init__(self, model, folder: Path, **options):
        super().__init__(model, **options)
        self.folder, self.kept = folder, []

    @torch.inference_mode()
    def answer(self, items):
        images = self._project([item.images for item in items])
        texts = [self._text(item.prompt, len(item.images)) for item in items]
        _, tokens = self.generate(texts, [item.images for item in items], items[0].limit)
        ends = self._answer_lengths(tokens)
        for item, text, new, end, seen in zip(items, texts, tokens.tolist(), ends, images, strict=True):
            (image,) = item.images
            (projected,) = seen
            file = self.folder / f"{len(self.kept)}.png"
            image.convert("RGB").save(file)
            said = self.inputs.tokenizer.decode(new[:end], skip_special_tokens=True).strip()
            self.kept.append(
                {
                    "prompt": item.prompt,
                    "text": text,
                    "image": str(file),
                    "limit": item.limit,
                    "tokens": new[:end],
                    "answer": said,
                    "visual": projected.tokens.tolist() if len(self.kept) < 16 else None,
                    "ids": self._ids(text, projected.prepared.text),
                }
            )
        return self.inputs.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def _ids(self, text, of_image):
        """The prompt's token ids, -1 for the image."""
        (whole,) = self.inputs.with_images([text], [of_image])
        ids = self.inputs.tokenizer(whole)["input_ids"]
        return [-1 if token == self.inputs.image_token else token for token in ids]


def ask(model: str, folder: Path, count: int) -> Path:
    """Answer `count` questions and write them, their images and the answers into `folder`. Returns the JSON file."""
    folder = folder.absolute()  # lmms-eval changes the working directory
    folder.mkdir(parents=True, exist_ok=True)
    each = count // len(BENCHMARKS)
    asked = Evaluation(world="playground", benchmarks=list(BENCHMARKS), items=each, split="test", batch=16)
    recorder = Recorder(check_checkpoint(model).build(), folder, batch=16, playground=True)
    score_request(recorder, asked, folder)
    file = folder / "questions.json"
    file.write_text(json.dumps(recorder.kept))
    return file
