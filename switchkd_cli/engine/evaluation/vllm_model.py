"""Generate greedy answers in vLLM, from the same token ids and prepared images as in transformers."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature

from switchkd_cli.engine.evaluation.generate import PromptedModel
from switchkd_cli.engine.evaluation.lmms_model import digest
from switchkd_cli.engine.hub import CheckpointFolder, as_user_error
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.errors import UserError

KNOWN = "llava"
"""The `model_type` whose inputs vLLM takes as our processor prepares them: a tensor of pixels for each image."""
ON_CPU: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**31}
"""Settings without a GPU: as exact as transformers; nothing compiled, memory for keys and values left to others."""


class VllmModel(PromptedModel):
    """A LLaVA that vLLM runs, in this process. Raises UserError for another model."""

    def __init__(self, checkpoint: CheckpointFolder, blueprint: Blueprint, **options: Any) -> None:
        super().__init__(blueprint.inputs, **options)
        if (told := checkpoint.json("config.json").get("model_type")) != KNOWN:
            problem = f"--engine vllm: answers for {KNOWN} models only, {checkpoint} is a {told}"
            raise UserError(problem, hint="--engine transformers")
        gc.collect()  # an earlier engine that ends later would take this one's process group with it
        how = {"dtype": "auto"} if torch.cuda.is_available() else ON_CPU
        in_this_process = patch.dict(os.environ, VLLM_ENABLE_V1_MULTIPROCESSING="0")
        with in_this_process, as_user_error(f"--engine vllm: {checkpoint}"):
            import vllm

            self.engine = vllm.LLM(str(checkpoint.folder), mm_processor_cache_gb=0, **how).llm_engine
        self.about = {"engine": f"vllm {vllm.__version__}"}
        self.ends = list(blueprint.ends) or [self.inputs.tokenizer.eos_token_id]

    def generate(self, texts: Sequence[str], images: Sequence[list[Image]], limit: int) -> tuple[list[int], Tensor]:
        from vllm import SamplingParams

        # vLLM's own ends are the tokenizer's
        how = {"temperature": 0.0, "max_tokens": limit, "ignore_eos": True, "stop_token_ids": self.ends}
        prompts = list(self._prompts(texts, images))
        written: dict[int, Tensor] = {}
        with as_user_error("--engine vllm"):  # a question of too many tokens; on a CPU, heads that are too narrow
            for number, prompt in enumerate(prompts):
                self.engine.add_request(str(number), prompt, SamplingParams(detokenize=False, **how))
            while self.engine.has_unfinished_requests():
                finished = [output for output in self.engine.step() if output.finished]
                written |= {int(output.request_id): torch.tensor(output.outputs[0].token_ids) for output in finished}
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
        for padded, mask, shown, own in zip(
            encoded["input_ids"], encoded["attention_mask"], images, prepared, strict=True
        ):
            ids = padded[mask.bool()]
            if not own:
                yield tokens_input(ids.tolist())
                continue
            counts = [image.text.count(self.inputs.image_text) for image in own]
            visual = (ids == self.inputs.image_token).nonzero().flatten().split(counts)
            places = [PlaceholderRange(int(tokens[0]), len(tokens)) for tokens in visual]
            pixels = BatchFeature({"pixel_values": torch.cat([image.inputs["pixel_values"] for image in own])})
            items = MultiModalKwargsItems.from_hf_inputs(pixels, fields)
            yield mm_input(ids.tolist(), items, {"image": [digest(image) for image in shown]}, {"image": places})
