"""Saving a model as a plain Hugging Face folder, in the form that the most tools read.

transformers 5 reads all that is written here. Older releases and vLLM (whose LLaVA is a class of its own) read
published LLaVA checkpoints, so names and fields are the published ones where transformers 5 would write others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from switchkd_cli.engine.models.chat_template import with_chat_template
from switchkd_cli.errors import UTF8

if TYPE_CHECKING:
    from switchkd_cli.engine.models.llava import Llava

NAMES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
"""A module's name in transformers 5 -> in published LLaVA checkpoints (llava-hf's)."""
SHARD = "5GB"
MODES = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")
"""The fields of a generation config that say whether others have an effect."""
ANY_FAST = "PreTrainedTokenizerFast"  # the name of "whatever tokenizer.json says" in every release


def save(
    model: Llava, folder: Path, *, template: str | None = None, end: str | None = None, weights: bool = True
) -> list[str]:
    """Writes config, safetensors, processor and generation config into `folder`. Returns what was left out, in words.

    `template` is the conversation (Jinja) that the model was taught and `end` the token that ends its answers;
    without them those of its processor stay. The model itself is left as it is. Without `weights`, one tensor of them
    is written: to see whether all the rest can be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor = with_chat_template(model.inputs.processor, template, end)
    generation, idle = _generation(model.model.generation_config, processor, taught=end is not None)
    with _generating(model.model, generation):
        _save_model(model.model, folder, weights=weights)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # again on its own: older releases look nowhere else
    _edit(folder / "config.json", lambda told: _plain_config(told, model.model.config, processor))
    simplify_tokenizer_config(folder / "tokenizer_config.json")
    _edit(
        folder / "preprocessor_config.json", lambda told: told | {"processor_class": type(processor).__name__}
    )
    return [
        f"generation_config.json: {name} {value!r} is not saved: it has no effect" for name, value in idle
    ]


def _save_model(model: LlavaForConditionalGeneration, folder: Path, *, weights: bool) -> None:
    """Configs and weights; a projector that transformers has no class for keeps its own names."""
    plain = type(model) is LlavaForConditionalGeneration
    state = published(model) if plain else model.state_dict()
    held = state if weights else dict(islice(state.items(), 1))
    model.save_pretrained(folder, state_dict=held, max_shard_size=SHARD, save_original_format=not plain)


def _generation(
    given: GenerationConfig, processor: LlavaProcessor, *, taught: bool
) -> tuple[GenerationConfig, list[tuple[str, Any]]]:
    """How the saved model generates, and the fields that have no effect on it, such as a temperature without sampling.

    Published checkpoints have some. transformers reads them with a warning and refuses to save them.
    """
    told = given.to_diff_dict() | {"pad_token_id": processor.tokenizer.pad_token_id}
    if taught or given.eos_token_id is None:
        told["eos_token_id"] = processor.tokenizer.eos_token_id
    told.pop("transformers_version", None)
    modes = {name: told[name] for name in MODES if name in told}
    idle = [(name, value) for name, value in told.items() if not _is_valid(modes | {name: value})]
    generation = GenerationConfig(**{k: v for k, v in told.items() if k not in dict(idle)})
    generation._from_model_config = False  # said here, not derived from fields that could say otherwise
    return generation, idle


def _is_valid(told: dict[str, Any]) -> bool:
    try:
        GenerationConfig(**told).validate(strict=True)
    except ValueError:
        return False
    return True


@contextmanager
def _generating(model: LlavaForConditionalGeneration, generation: GenerationConfig) -> Iterator[None]:
    """Inside, the model generates so."""
    before, model.generation_config = model.generation_config, generation
    try:
        yield
    finally:
        model.generation_config = before


def published(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """The model's tensors under the names of published checkpoints; a tied head is not among them."""
    tied = model.config.tie_word_embeddings
    state = {name: tensor for name, tensor in model.state_dict().items() if not (tied and "lm_head." in name)}
    return {_published(name): tensor for name, tensor in state.items()}


def _published(name: str) -> str:
    begins = next(prefix for prefix in NAMES if name.startswith(prefix))
    return NAMES[begins] + name.removeprefix(begins)


def _plain_config(
    told: dict[str, Any], config: PretrainedConfig, processor: LlavaProcessor
) -> dict[str, Any]:
    """config.json with what vLLM needs of the language model, and rotary positions as older releases name them."""
    text = told["text_config"]
    for part in (told, text, told["vision_config"]):
        part.pop("_name_or_path", None)  # where it lay on this machine
    text["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.text_config.model_type]]
    text["eos_token_id"] = processor.tokenizer.eos_token_id
    told["tie_word_embeddings"] = text["tie_word_embeddings"] = config.tie_word_embeddings
    rope = dict(text.get("rope_parameters") or {})
    if theta := rope.pop("rope_theta", None):
        text["rope_theta"] = theta
    if rope.get("rope_type", "default") != "default":
        text["rope_scaling"] = rope
    return told


def simplify_tokenizer_config(tokenizer_config: Path) -> None:
    """Rewrites a tokenizer_config.json for releases of transformers before 5, which refuse what 5 writes there."""
    _edit(tokenizer_config, _plain_tokenizer)


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
    file.write_text(json.dumps(told, indent=2, ensure_ascii=False, sort_keys=True) + "\n", **UTF8)
