"""Saving a model as a plain Hugging Face folder, in the form that the most tools read.

transformers 5 reads all that is written here. Older releases and vLLM (whose LLaVA is a class of its own) read
published LLaVA checkpoints, so names and fields are the published ones where transformers 5 would write others.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from switchkd_cli.engine.models.llava import Llava
from switchkd_cli.engine.models.spoken import spoken

NAMES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
"""A module's name in transformers 5 -> in published LLaVA checkpoints (llava-hf's)."""
SHARD = "5GB"
ANY_FAST = "PreTrainedTokenizerFast"  # the name of "whatever tokenizer.json says" in every release


def save(model: Llava, folder: Path, *, template: str | None = None, end: str | None = None) -> None:
    """Writes config, safetensors, processor and generation config into `folder`.

    `template` is the conversation (Jinja) that the model was taught and `end` the token that ends its answers;
    without them those of its processor stay. The model itself is left as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save_weights(model.model, folder)
    processor = spoken(model.processor, template, end)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # again on its own: older releases look nowhere else
    generation = copy.deepcopy(model.model.generation_config)
    generation.pad_token_id = processor.tokenizer.pad_token_id
    if end is not None or generation.eos_token_id is None:
        generation.eos_token_id = processor.tokenizer.eos_token_id
    generation._from_model_config = False  # said here, not derived from fields that could say otherwise
    generation.save_pretrained(folder)
    _edit(folder / "config.json", lambda told: _plain_config(told, model.model.config, processor))
    _edit(folder / "tokenizer_config.json", _plain_tokenizer)
    _edit(
        folder / "preprocessor_config.json", lambda told: told | {"processor_class": type(processor).__name__}
    )


def _save_weights(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """The config and the weights; a projector that transformers has no class for keeps its own names."""
    if type(model) is LlavaForConditionalGeneration:
        model.save_pretrained(
            folder, state_dict=published(model), save_original_format=False, max_shard_size=SHARD
        )
    else:
        model.save_pretrained(folder, max_shard_size=SHARD)


def published(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """The model's tensors under the names of published checkpoints; a tied head is not among them."""
    tied = model.config.tie_word_embeddings
    state = {name: tensor for name, tensor in model.state_dict().items() if not (tied and "lm_head." in name)}
    return {_published(name): tensor for name, tensor in state.items()}


def _published(name: str) -> str:
    begins = next(prefix for prefix in NAMES if name.startswith(prefix))
    return NAMES[begins] + name.removeprefix(begins)


def _plain_config(
    told: dict[str, Any], config: PreTrainedConfig, processor: LlavaProcessor
) -> dict[str, Any]:
    """config.json with what vLLM needs of the language model, and rotary positions as older releases name them."""
    text = told["text_config"]
    for part in (told, text, told["vision_config"]):
        part.pop("_name_or_path", None)  # where it lay on this machine
    text["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.text_config.model_type]]
    text["eos_token_id"] = processor.tokenizer.eos_token_id
    rope = dict(text.get("rope_parameters") or {})
    if theta := rope.pop("rope_theta", None):
        text["rope_theta"] = theta
    if rope.get("rope_type", "default") != "default":
        text["rope_scaling"] = rope
    return told


def _plain_tokenizer(told: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json without transformers 5's own class name and list, which older releases refuse.

    And with what a LLaVA model takes: of an unnamed class of tokenizers they would ask for token types as well.
    """
    told["model_input_names"] = ["input_ids", "attention_mask"]
    if told["tokenizer_class"] == "TokenizersBackend":
        told["tokenizer_class"] = ANY_FAST
    if isinstance(told.get("extra_special_tokens"), list):
        told["additional_special_tokens"] = told.pop("extra_special_tokens")
    for how_read in ("backend", "is_local", "local_files_only", "name_or_path"):
        told.pop(how_read, None)
    return told


def _edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    told = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(told, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
