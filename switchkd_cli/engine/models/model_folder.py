"""Save a model as a plain Hugging Face folder, in the form that most tools read.

transformers 5 reads every file that is written here. Older releases and vLLM (whose LLaVA is a class of its own) read
published LLaVA checkpoints, so a LLaVA's names and fields are those of published checkpoints where transformers 5 would
write others. A model of another family is written as transformers 5 writes it.
"""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from switchkd_cli.engine.models.checkpoint_files import FIELDS, renamed
from switchkd_cli.engine.models.low_rank import FOLDER, merged, save_adapters
from switchkd_cli.engine.models.processors import to_be_saved
from switchkd_cli.engine.models.seams import replaced
from switchkd_cli.errors import UTF8

if TYPE_CHECKING:
    from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel

SHARD = "5GB"
MODES = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")
"""The fields of a generation config that decide whether other fields have an effect."""
FAST_CLASS = "PreTrainedTokenizerFast"  # in every release, the class that reads everything from tokenizer.json


def save(
    model: "VisionLanguageModel",
    folder: Path,
    *,
    template: str | None = None,
    end: str | None = None,
    weights: bool = True,
) -> list[str]:
    """Write config, safetensors, processor and generation config into `folder`. Returns notes of what was left out.

    `template`, `end`: see `to_be_saved`. Without `weights` it writes only one of the tensors. Adapters are merged into the
    weights, and written on their own, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processor = to_be_saved(model.inputs.processor, template, end)
    generation, unused = _generation_config(model.model.generation_config, processor, trained=end is not None)
    with merged(model), replaced(model.model, {"generation_config": generation}):
        _save_model(model.model, folder, weights=weights)
    save_adapters(model, folder / FOLDER)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # again in its own file: older releases read only this
    edit_json(folder / "config.json", lambda fields: _portable_config(fields, model.model, processor))
    edit_json(folder / "tokenizer_config.json", portable_tokenizer_config)
    edit_json(folder / "processor_config.json", lambda fields: {k: v for k, v in fields.items() if v != {}})
    of_class = {"processor_class": type(processor).__name__}
    edit_json(folder / "preprocessor_config.json", lambda fields: fields | of_class)
    return [f"generation_config.json: {name} {value!r} is not saved: it has no effect" for name, value in unused]


def _save_model(model: PreTrainedModel, folder: Path, *, weights: bool) -> None:
    """Write configs and weights, without a tied head, which transformers itself would leave out too.

    A LLaVA's tensors have the names of published checkpoints, except with a projector that transformers doesn't have.
    """
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.config.tie_word_embeddings = tied
    published = type(model) is LlavaForConditionalGeneration
    state = {
        published and renamed(name, FIELDS["published_tensors"]) or name: tensor
        for name, tensor in model.state_dict().items()
        if not (tied and name.startswith("lm_head."))
    }
    tensors = state if weights else dict(islice(state.items(), 1))
    model.save_pretrained(folder, state_dict=tensors, max_shard_size=SHARD, save_original_format=not published)


def _portable_config(fields: dict[str, Any], model: PreTrainedModel, processor: ProcessorMixin) -> dict[str, Any]:
    """Return config.json's fields without paths of this machine, and with the head as it is: tied or not.

    A LLaVA's have those that vLLM reads as well, and rotary positions under their older names.
    """
    for part in (fields, *(part for part in fields.values() if isinstance(part, dict))):
        part.pop("_name_or_path", None)
    fields["tie_word_embeddings"] = model.config.tie_word_embeddings
    if isinstance(model.config, LlavaConfig):
        text = fields["text_config"]
        text["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text["model_type"]]]
        text["eos_token_id"] = processor.tokenizer.eos_token_id
        text["tie_word_embeddings"] = fields["tie_word_embeddings"]
        rope = dict(text.get("rope_parameters") or {})
        if theta := rope.pop("rope_theta", None):
            text["rope_theta"] = theta
        if rope.get("rope_type", "default") != "default":
            text["rope_scaling"] = rope
    return fields


def _generation_config(
    current: GenerationConfig, processor: ProcessorMixin, *, trained: bool
) -> tuple[GenerationConfig, list[tuple[str, Any]]]:
    """Return the generation config to save, and the fields without effect, such as a temperature without sampling.

    Published checkpoints have such fields. transformers reads them with a warning and refuses to save them.
    """
    fields = current.to_diff_dict() | {"pad_token_id": processor.tokenizer.pad_token_id}
    if trained or current.eos_token_id is None:
        fields["eos_token_id"] = processor.tokenizer.eos_token_id
    fields.pop("transformers_version", None)
    modes = {name: fields[name] for name in MODES if name in fields}
    unused = [(name, value) for name, value in fields.items() if not _is_valid(modes | {name: value})]
    generation = GenerationConfig(**{k: v for k, v in fields.items() if k not in dict(unused)})
    generation._from_model_config = False  # set here, not derived from the model config's fields
    return generation, unused


def _is_valid(fields: dict[str, Any]) -> bool:
    try:
        GenerationConfig(**fields).validate(strict=True)
    except ValueError:
        return False
    return True


def portable_tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a tokenizer_config.json without transformers 5's class name and list, which older ones refuse.

    `model_input_names` is set, because for an unnamed tokenizer class they would ask for token types as well.
    """
    fields["model_input_names"] = ["input_ids", "attention_mask"]
    if fields["tokenizer_class"] == "TokenizersBackend":
        fields["tokenizer_class"] = FAST_CLASS
    if isinstance(fields.get("extra_special_tokens"), list):
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    for field in ("backend", "is_local", "local_files_only", "name_or_path"):
        fields.pop(field, None)
    return fields


def edit_json(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a JSON file of one mapping."""
    fields = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(fields, indent=2, ensure_ascii=False, sort_keys=True) + "\n", **UTF8)
