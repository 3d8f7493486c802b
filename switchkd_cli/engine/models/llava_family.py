"""The LLaVA family: Hugging Face and TinyLLaVA checkpoints, LDPNetV2's projector, and models from parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, LlavaConfig

from switchkd_cli.engine.hub import Stored
from switchkd_cli.engine.models import llava_folder, llava_parts, tinyllava
from switchkd_cli.engine.models.family import Published
from switchkd_cli.engine.models.llava import Llava, LlavaBlueprint, LlavaInputs
from switchkd_cli.engine.models.llava_config import image_tokens_of, shape
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.recipe.schema import Parts

STOCK = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(images=image, text=text, return_tensors="pt")
new = model.generate(**inputs, do_sample=False, max_new_tokens=64)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(new, skip_special_tokens=True)[0])
```

It is transformers' own `LlavaForConditionalGeneration`, without remote code. lmms-eval's `llava_hf` gives it the scores of
`switchkd eval --model FOLDER`. It has the names and fields that vLLM's LLaVA reads, but was not run there.
"""
WITH_LDPNET = """\
transformers doesn't have its projector, LDPNetV2: **transformers by itself, lmms-eval's `llava_hf` and vLLM can't
load this model.** `switchkd` does, and so does transformers in a process that has imported the class:

```python
import switchkd_cli.engine.models.ldpnet  # pip install switchkd-cli
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```
"""


class LlavaFamily:
    """The LLaVA family; see `family.Family`."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in (tinyllava.TYPE, *llava_folder.MODEL_TYPES)

    def read(self, stored: Stored) -> LlavaBlueprint:
        return llava_folder.read_whole(stored)

    def from_parts(self, spec: Parts, who: str) -> LlavaBlueprint:
        return llava_parts.design(spec, who)

    def published_config(self, spec: Parts, who: str, published: Published) -> tuple[LlavaConfig, int] | None:
        return llava_parts.published_config(spec, who, published)

    def usage(self, config: Mapping[str, Any]) -> str:
        return STOCK if config["model_type"] == "llava" else WITH_LDPNET

    def skeleton(self, config: LlavaConfig) -> Llava:
        with torch.device("meta"):
            return Llava(AutoModelForImageTextToText.from_config(config), LlavaInputs(None, image_tokens_of(config)))

    def shape(self, config: LlavaConfig) -> ModelShape:
        return shape(config)

    def image_tokens(self, config: LlavaConfig) -> int:
        return image_tokens_of(config)


LLAVA = LlavaFamily()
