"""MLX's folder, written by mlx-vlm's own converter, and in low bits by its own quantizer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from switchkd_cli.engine.export.runtimes import Runtime, unlike_llava
from switchkd_cli.engine.models.blueprint import Blueprint


def _write(model: Blueprint, folder: Path, bits: int | None) -> None:
    from mlx_vlm.convert import convert

    with TemporaryDirectory() as plain:
        model.build("auto").save(Path(plain))
        convert(plain, str(folder), quantize=bool(bits), trust_remote_code=False, **({"q_bits": bits} if bits else {}))


MLX = Runtime(
    unlike_llava,
    _write,
    'mlx_vlm.generate --model . --image image.png --prompt "What is it?" --temperature 0',
    low={4: "affine, groups of 64", 8: "affine, groups of 64"},
    packages={"mlx_vlm": "pip install mlx-vlm    # on Linux: pip install mlx-cpu mlx-vlm"},
)
