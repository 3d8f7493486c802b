"""vLLM loads the plain Hugging Face folder, which every run leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from switchkd_cli.engine.export.runtimes import Runtime, unlike_llava
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.llava import LlavaBlueprint

ON_CPU = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Widths of a head that vLLM 0.32's attention takes on a CPU; its FlashAttention takes multiples of 8."""


def head_width(text) -> int:
    """Return the width of a language model's attention head."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _refuses(model: Blueprint) -> Iterator[str]:
    if isinstance(model, LlavaBlueprint):
        yield from unlike_llava(model)
    if (width := head_width(model.config.get_text_config())) % 8:
        yield f"the language model's heads are {width} wide, it takes multiples of 8 (student.language)"


def _notes(model: Blueprint) -> Iterator[str]:
    if (width := head_width(model.config.get_text_config())) not in ON_CPU:
        yield f"vLLM needs a GPU for heads of width {width}: on a CPU it takes {', '.join(map(str, ON_CPU))}"
    if not isinstance(model, LlavaBlueprint):
        yield f"a {model.kind} model: only LLaVA's shape was tried in vLLM"


def _write(model: Blueprint, folder: Path, bits: int | None) -> None:
    model.build("auto").save(folder)


VLLM = Runtime(_refuses, _write, "vllm serve . --quantization bitsandbytes    # without it: as saved", notes=_notes)
