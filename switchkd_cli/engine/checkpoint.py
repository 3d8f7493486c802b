"""Saving a model as a plain Hugging Face folder."""

from pathlib import Path

from switchkd_cli.engine.models.llava import Llava


def save(model: Llava, folder: Path) -> None:
    """Writes config, safetensors, processor with chat template and generation config into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.model.save_pretrained(folder, safe_serialization=True)
    model.processor.save_pretrained(folder)
