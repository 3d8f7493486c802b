"""The LLaVA family: Hugging Face and TinyLLaVA checkpoints, LDPNetV2's projector, and models from parts."""

from __future__ import annotations

from switchkd_cli.engine.models import llava_folder, llava_parts
from switchkd_cli.engine.models.families import StockFamily
from switchkd_cli.engine.models.llava import SEAM


class LlavaFamily(StockFamily):
    """The LLaVA family; see `family.Family`."""

    recognises = staticmethod(llava_folder.recognises)  # type: ignore[assignment]
    read = staticmethod(llava_folder.read)  # type: ignore[assignment]
    from_parts = staticmethod(llava_parts.design)  # type: ignore[assignment]
    published_config = staticmethod(llava_parts.published_config)  # type: ignore[assignment]


LLAVA = LlavaFamily("llava", SEAM)
