"""The LLaVA family: Hugging Face and TinyLLaVA checkpoints, LDPNetV2's projector, and models from parts."""

from __future__ import annotations

from switchkd_cli.engine.models import llava_folder, llava_parts
from switchkd_cli.engine.models.family import Family
from switchkd_cli.engine.models.llava import SEAM


class LlavaFamily(Family):
    """The LLaVA family."""

    recognises = staticmethod(llava_folder.recognises)
    read = staticmethod(llava_folder.read)
    from_parts = staticmethod(llava_parts.design)
    published_config = staticmethod(llava_parts.published_config)


LLAVA = LlavaFamily("llava", SEAM)
