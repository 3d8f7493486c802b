"""Copy a model that a playground recipe has trained, or a part of it, into the package's assets.

    python -m scripts.ship runs/tower/tower/seed0/model tower
    python -m scripts.ship runs/wider/base/seed0/model language
    python -m scripts.ship runs/teacher/large/seed0/model teacher

Weights are stored in float16: half the size, and far finer than what training at this scale resolves.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from switchkd_cli.engine.build import load
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.recipe.named_files import ASSETS


def whole(model: VisionLanguageModel, folder: Path) -> None:
    model.model.half().save_pretrained(folder)
    model.inputs.processor.save_pretrained(folder)


def tower(model: VisionLanguageModel, folder: Path) -> None:
    vision = SiglipVisionModel(model.model.config.vision_config)
    vision.load_state_dict(model.model.model.vision_tower.state_dict())
    vision.half().save_pretrained(folder)
    model.inputs.processor.image_processor.save_pretrained(folder)


def language(model: VisionLanguageModel, folder: Path) -> None:
    reader = Qwen2ForCausalLM(model.model.config.text_config)
    reader.model.load_state_dict(model.model.model.language_model.state_dict())
    reader.lm_head.load_state_dict(model.model.lm_head.state_dict())
    reader.tie_weights()
    reader.half().save_pretrained(folder)


SHIPPED = {"tower": tower, **dict.fromkeys(("language-small", "language", "language-large"), language)}
SHIPPED |= dict.fromkeys(("teacher-small", "teacher"), whole)


def compact(file: Path) -> None:
    """Write a JSON file again without line breaks: a tokenizer's is a third smaller."""
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the model/ folder of a finished run")
    parser.add_argument("name", choices=SHIPPED)
    asked = parser.parse_args()
    folder = ASSETS / asked.name
    shutil.rmtree(folder, ignore_errors=True)
    with torch.no_grad():
        SHIPPED[asked.name](load(str(asked.model)), folder)
    for file in folder.glob("*.json"):
        compact(file)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder.relative_to(Path.cwd())}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
