"""Runtimes that read the plain Hugging Face folder, which every run leaves, or convert it themselves: vLLM and MLX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from switchkd_cli.engine.export.runtimes import Runtime, as_llava, unlike_llava
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.llava import LlavaBlueprint

ON_CPU = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Widths of a head that vLLM 0.32's attention takes on a CPU."""


def _refuses(model: Blueprint) -> Iterator[str]:
    if isinstance(model, LlavaBlueprint):  # the other families are transformers' own, and vLLM has them
        yield from unlike_llava(model)


def _notes(model: Blueprint) -> Iterator[str]:
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if width not in ON_CPU:
        yield f"vLLM can't run heads of width {width} on a CPU, only {', '.join(map(str, ON_CPU))}"
    if not isinstance(model, LlavaBlueprint):
        yield f"a {model.kind} model: of these only LLaVA's were run in vLLM"


def _write(model: Blueprint, folder: Path, bits: int | None) -> None:
    as_llava(model.build("auto")).save(folder)


def _convert(model: Blueprint, folder: Path, bits: int | None) -> None:
    """Write MLX's folder by mlx-vlm's own converter, and in low bits by its own quantizer."""
    from mlx_vlm.convert import convert

    with TemporaryDirectory() as plain:
        _write(model, Path(plain), None)
        convert(plain, str(folder), quantize=bool(bits), trust_remote_code=False, **({"q_bits": bits} if bits else {}))


VLLM = Runtime(_refuses, _write, "vllm serve .    # in 4 bits: --quantization bitsandbytes", notes=_notes)
MLX = Runtime(
    unlike_llava,
    _convert,
    'mlx_vlm.generate --model . --image image.png --prompt "What is it?" --temperature 0',
    low={4: "affine, groups of 64", 8: "affine, groups of 64"},
    packages={"mlx_vlm": "pip install mlx-vlm    # on Linux: pip install mlx-cpu mlx-vlm"},
)
