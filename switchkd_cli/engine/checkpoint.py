"""Saving a model as a plain Hugging Face folder, whole or not at all."""

import os
import shutil
from pathlib import Path

from switchkd_cli.engine.models.llava import Llava


def save(model: Llava, folder: Path) -> None:
    """Writes config, safetensors, processor with chat template and generation config to `folder`.

    Written beside it first and renamed, so that a folder of this name is always complete.
    """
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    model.model.save_pretrained(partial, safe_serialization=True)
    model.processor.save_pretrained(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
