"""Generate greedy answers in vLLM, from the same token ids and prepared images as in transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature

from switchkd_cli.engine.evaluation.generate import PromptedModel
from switchkd_cli.engine.evaluation.lmms_model import digest
from switchkd_cli.engine.hub import CheckpointFolder
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.errors import UserError, import_errors

KNOWN = "llava"
"""The `model_type` whose inputs vLLM takes as our processor prepares them: a tensor of pixels for each image."""


ON_CPU: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**31}
"""Settings without a GPU: as exact as transformers; nothing compiled, memory for keys and values left to others."""


class VllmModel(PromptedModel):
    """A LLaVA that vLLM runs, in this process."""

    def __init__(self, folder: Path, blueprint: Blueprint, **options: Any) -> None:
        super().__init__(blueprint.inputs, **options)
        self._ends = list(blueprint.ends) or [self.inputs.tokenizer.eos_token_id]
        how = {"dtype": "auto"} if torch.cuda.is_available() else ON_CPU
        with import_errors(), patch.dict(os.environ, VLLM_ENABLE_V1_MULTIPROCESSING="0"):
            import vllm

            self.engine = vllm.LLM(str(folder), mm_processor_cache_gb=0, disable_log_stats=True, **how).llm_engine
        self.about = {"engine": f"vllm {vllm.__version__}"}

    @classmethod
    def read(cls, checkpoint: CheckpointFolder, blueprint: Blueprint, **options: Any) -> VllmModel:
        """Read a checkpoint's model. Raises UserError for one that isn't LLaVA."""
        if (told := checkpoint.json("config.json")["model_type"]) != KNOWN:
            problem = f"--engine vllm: answers for {KNOWN} models only, {checkpoint} is a {told}"
            raise UserError(problem, hint="--engine transformers")
        return cls(checkpoint.folder, blueprint, **options)

    @property
    def ends(self) -> list[int]:
        return self._ends

    def generate(self, texts: Sequence[str], images: Sequence[list[Image]], limit: int) -> tuple[list[int], Tensor]:
        from vllm import SamplingParams

        # vLLM's own ends are the tokenizer's
        how = {"temperature": 0.0, "max_tokens": limit, "ignore_eos": True, "stop_token_ids": self.ends}
        prompts = list(self._prompts(texts, images))
        for number, prompt in enumerate(prompts):
            self.engine.add_request(str(number), prompt, SamplingParams(detokenize=False, **how))
        written: dict[int, Tensor] = {}
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished:
                    written[int(output.request_id)] = torch.tensor(output.outputs[0].token_ids)
        answers = [written[number] for number in range(len(prompts))]
        padded = pad_sequence(answers, batch_first=True, padding_value=self.inputs.tokenizer.pad_token_id)
        return [len(prompt["prompt_token_ids"]) for prompt in prompts], padded

    def _prompts(self, texts: Sequence[str], images: Sequence[list[Image]]) -> Iterator[Any]:
        """Yield each text and its images as vLLM has them after its own processing, which prepares images otherwise."""
        from vllm.inputs import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

        prepared = [self.inputs.prepare(own) for own in images]
        encoded = self.inputs.tokenized(texts, [[image.text for image in own] for own in prepared])
        fields = {"pixel_values": MultiModalFieldConfig.batched("image")}
        for row, mask, shown, own in zip(
            encoded["input_ids"], encoded["attention_mask"], images, prepared, strict=True
        ):
            ids = row[mask.bool()].tolist()
            if not own:
                yield tokens_input(ids)
                continue
            places, end = [], 0
            for image in own:
                length = image.text.count(self.inputs.image_text)
                start = ids.index(self.inputs.image_token, end)
                places.append(PlaceholderRange(start, length))
                end = start + length
            pixels = BatchFeature({"pixel_values": torch.cat([image.inputs["pixel_values"] for image in own])})
            items = MultiModalKwargsItems.from_hf_inputs(pixels, fields)
            yield mm_input(ids, items, {"image": [digest(image) for image in shown]}, {"image": places})
