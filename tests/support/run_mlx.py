"""Greedy tokens from an MLX folder: python run_mlx.py FOLDER QUESTIONS. Prints JSON. Needs mlx-vlm."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
from mlx_vlm import load
from mlx_vlm.models.cache import make_prompt_cache
from PIL import Image


def main(folder: str, questions: list[dict]) -> None:
    model, processor = load(folder)
    ends = json.loads((Path(folder) / "generation_config.json").read_text())["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    told, first, rest, later = [], 0.0, 0.0, 0
    for question in questions:
        read = processor(images=[Image.open(question["image"])], text=[question["text"]], return_tensors="np")
        began = time.process_time()
        ids, pixels = mx.array(read["input_ids"]), mx.array(read["pixel_values"])
        embeddings = model.get_input_embeddings(ids, pixels).inputs_embeds
        cache, new = make_prompt_cache(model.language_model), []
        given = {"inputs": ids, "inputs_embeds": embeddings}
        while len(new) < question["limit"] and (not new or new[-1] not in ends):
            output = model.language_model(**given, cache=cache)
            new.append(mx.argmax(output.logits[0, -1]).item())
            given = {"inputs": mx.array([new[-1:]])}
            if len(new) == 1:
                first, began = first + time.process_time() - began, time.process_time()
        rest, later = rest + time.process_time() - began, later + len(new) - 1
        told.append(new)
    per = {"first_ms": 1000 * first / len(told), "tokens_per_second": later / rest if later else None}
    print(json.dumps({"tokens": told, "mlx": version("mlx"), "mlx-vlm": version("mlx-vlm"), **per}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
