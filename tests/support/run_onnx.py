"""Greedy tokens from the exported ONNX files: python run_onnx.py FOLDER QUESTIONS. Prints a list of lists as JSON.

Needs onnxruntime, and transformers for the processor alone.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoProcessor


def main(folder: Path, questions: list[dict]) -> None:
    config = json.loads((folder / "config.json").read_text())
    suffix = {"fp32": "", "q4": "_q4", "q8": "_quantized"}[config["transformers.js_config"]["dtype"]]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    vision, embed, decoder = (
        onnxruntime.InferenceSession(folder / "onnx" / f"{name}{suffix}.onnx", options)
        for name in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    )
    processor, told, first, rest, later = AutoProcessor.from_pretrained(folder), [], 0.0, 0.0, 0
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    past_of = {i.name: i.shape for i in decoder.get_inputs() if i.name.startswith("past")}
    for question in questions:
        read = processor(images=Image.open(question["image"]), text=question["text"], return_tensors="np")
        began = time.process_time()
        ids = read["input_ids"]
        embeddings = embed.run(None, {"input_ids": ids})[0]
        image = vision.run(None, {"pixel_values": read["pixel_values"].astype(np.float32)})[0]
        embeddings[ids == config["image_token_index"]] = image.reshape(-1, image.shape[-1])
        past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in past_of.items()}
        new: list[int] = []
        while len(new) < question["limit"] and (not new or new[-1] not in ends):
            before = next(iter(past.values())).shape[2]
            total = before + embeddings.shape[1]
            given = {"inputs_embeds": embeddings, "attention_mask": np.ones((1, total), np.int64)}
            given["position_ids"] = np.arange(before, total)[None]
            logits, *present = decoder.run(None, given | past)
            past = dict(zip(past, present, strict=True))
            new.append(int(logits[0, -1].argmax()))
            embeddings = embed.run(None, {"input_ids": np.array([new[-1:]])})[0]
            if len(new) == 1:
                first, began = first + time.process_time() - began, time.process_time()
        rest, later = rest + time.process_time() - began, later + len(new) - 1
        told.append(new)
    per = {"first_ms": 1000 * first / len(told), "tokens_per_second": later / rest if later else None}
    print(json.dumps({"tokens": told, "onnxruntime": onnxruntime.__version__, **per}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
