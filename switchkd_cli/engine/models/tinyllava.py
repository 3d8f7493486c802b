"""Read TinyLLaVA checkpoints as transformers' LLaVA models: other names, the same computation.

A model has one of two layouts. A fine-tuned folder has one set of weights whose names begin with `language_model.`,
`vision_tower._vision_tower.` and `connector._connector.`; a pre-trained folder has the sub-folders
`language_model/`, `vision_tower/` and `connector/` with the rest of these names. Their vocabulary has no image
token (visual tokens take the place of id -200), and their `patch` selection drops the first feature of
any tower: of SigLIP, which has no class token, the first patch.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from switchkd_cli import registry
from switchkd_cli.engine.hub import TOKENIZER_FILES, CheckpointFolder, as_user_error, fetch
from switchkd_cli.engine.models import processors
from switchkd_cli.engine.models.checkpoint_files import FIELDS, check_config, renamed
from switchkd_cli.engine.models.llava import LANGUAGE_MODELS, TOWERS, LlavaBlueprint, joined, processor_for
from switchkd_cli.engine.models.processors import IMAGE, IN_PARTS
from switchkd_cli.engine.weights import PICKLED, SAFE, check_weights, load_weights, read_tensors
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.yaml_positions import at

TYPE = "tinyllava"
SELECTIONS = {"patch": "default", "cls_patch": "full"}  # TinyLLaVA's value -> transformers'
UNUSED = (".vision_model.head.", ".position_ids", ".inv_freq")  # the pooling head, and values that the model computes
PUBLISHED = {"siglip_vision_model": "siglip-", "clip_vision_model": "clip-vit-"}
"""Prefix of the names of published towers whose image processing is known (siglip2's differs)."""


def read(checkpoint: CheckpointFolder) -> LlavaBlueprint:
    """Read config, tokenizer and image processor as transformers' LLaVA has them, and of the weights only the headers.

    Raises UserError, naming every problem, for settings that transformers' LLaVA doesn't have, incomplete weights, or an
    image processor that is neither on this machine nor known.
    """
    fields = checkpoint.json("config.json")
    _check(checkpoint, fields)
    check_weights(*_weight_folders(checkpoint))
    tokenizer = processors.read_tokenizer(_tokenizer_folder(checkpoint, fields))
    config = _config(checkpoint, fields, tokenizer)
    image_processor, notes = _image_processor(checkpoint, fields, config)
    if fields.get("image_aspect_ratio") == "pad":
        image_processor = processors.with_square_padding(image_processor)
    template = IN_PARTS + registry.template("tinyllava")  # a base and an instruct model differ in their end token
    processor = processor_for(config, image_processor, tokenizer, template)
    return LlavaBlueprint.of(config, processor, partial(_weights, checkpoint, config, tokenizer), notes)


def _check(checkpoint: CheckpointFolder, fields: Mapping[str, Any]) -> None:
    """Raise UserError, naming every field with a value that transformers' LLaVA doesn't have."""
    second_tower = fields.get("vision_model_name_or_path2") or ""
    supported = {
        "text_config.model_type": (at(fields, "text_config", "model_type"), LANGUAGE_MODELS),
        "vision_config.model_type": (at(fields, "vision_config", "model_type"), TOWERS),
        "connector_type": (fields.get("connector_type"), ("mlp2x_gelu",)),
        "vision_feature_select_strategy": (fields.get("vision_feature_select_strategy", "patch"), SELECTIONS),
        "image_aspect_ratio": (fields.get("image_aspect_ratio", "square"), ("square", "pad")),
    }
    wrong = [(field, value, known) for field, (value, known) in supported.items() if value not in known]
    problems = [f"{field} is {value!r}, not {' or '.join(known)}" for field, value, known in wrong]
    problems += [f"a second vision tower, {second_tower!r}"] if second_tower else []
    problems = [f"{checkpoint}: config.json: {problem}" for problem in problems]
    if checkpoint.has("adapter_config.json"):
        problems.append(f"{checkpoint}: holds LoRA adapters, not a whole model: merge them first")
    if problems:
        hint = "supported are TinyLLaVA models of SigLIP or CLIP, an MLP projector, and Qwen2 or Llama"
        raise UserError(problems, hint=hint)


def _weight_folders(checkpoint: CheckpointFolder) -> dict[CheckpointFolder, str]:
    """Return where the weights are and the prefix of their names: the folder itself, or its three sub-folders."""
    one_folder = any(checkpoint.has(name, f"{name}.index.json") for name in (SAFE, PICKLED))
    if one_folder or not (checkpoint.folder / "connector").is_dir():
        return {checkpoint: ""}
    return {checkpoint / part: prefix for part, prefix in FIELDS["tinyllava_folders"].items()}


def _tokenizer_folder(checkpoint: CheckpointFolder, fields: Mapping[str, Any]) -> CheckpointFolder:
    """Return where the tokenizer is: next to the weights, or under the name in the config."""
    name = fields.get("tokenizer_name_or_path") or fields.get("llm_model_name_or_path")
    if checkpoint.has(*processors.TOKENIZERS) or not name:
        return checkpoint
    return fetch(name, f"{checkpoint}: tokenizer", only=TOKENIZER_FILES)


def _config(checkpoint: CheckpointFolder, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> LlavaConfig:
    check_config(fields, checkpoint)
    with as_user_error(f"{checkpoint}: no readable config"):
        vision, text = _part_config(fields["vision_config"]), _part_config(fields["text_config"])
        settings = {
            "vision_feature_layer": fields.get("vision_feature_layer", -2),
            "vision_feature_select_strategy": SELECTIONS[fields.get("vision_feature_select_strategy", "patch")],
        }
        image_token = tokenizer.convert_tokens_to_ids(IMAGE)
        config = joined(LlavaConfig, vision, text, len(tokenizer), image_token, **settings)
    check_config(config, checkpoint)
    return config


def _part_config(fields: Mapping[str, Any]) -> Any:
    """Return a part's config. Fields that TinyLLaVA didn't write have the class's defaults, which are the same today."""
    settings = {k: v for k, v in fields.items() if k not in FIELDS["tinyllava_names"]}
    return AutoConfig.for_model(fields["model_type"], **settings)


def _image_processor(checkpoint: CheckpointFolder, fields: Mapping[str, Any], config: LlavaConfig):
    """Return the image processor, and a note where it is not stored but known.

    TinyLLaVA saves none. It is still looked for in the folder, then under the tower's name, which may be a path on another
    machine; published SigLIP and CLIP towers are recognised by the last part of that name.
    """
    name = str(fields["vision_config"].get("model_name_or_path") or fields.get("vision_model_name_or_path") or "")
    for folder in (checkpoint, checkpoint / "vision_tower"):
        if folder.has(processors.FILE):
            return processors.read_image_processor(folder), ()
    try:
        tower = fetch(name, f"{checkpoint}: image processor", only=(processors.FILE,))
        return processors.read_image_processor(tower), ()
    except UserError as error:
        if not name.rstrip("/").rpartition("/")[2].startswith(PUBLISHED[config.vision_config.model_type]):
            raise UserError(
                f"{checkpoint}: its image processor is not here: {name or 'no name'} "
                "(config.json: vision_config.model_name_or_path)",
                hint=f"copy the {processors.FILE} of the vision tower that it was trained with into its folder",
                code=error.code,
            ) from error
    note = f"{checkpoint}: {name} is not here: images are prepared as for the published tower of that name"
    return processors.default_image_processor(config.vision_config), (note,)


def _weights(
    checkpoint: CheckpointFolder, config: LlavaConfig, tokenizer: PreTrainedTokenizerBase, dtype: str
) -> LlavaForConditionalGeneration:
    folders = _weight_folders(checkpoint)
    stored = {prefix + name: tensor for of, prefix in folders.items() for name, tensor in read_tensors(of).items()}
    used = [name for name in stored if not any(part in name for part in UNUSED)]
    names = {name: renamed(name, FIELDS["tinyllava_tensors"]) for name in used}
    if unknown := [name for name, new in names.items() if new is None]:
        raise UserError(f"{checkpoint}: {len(unknown)} tensors of no known part, such as {unknown[0]}")
    state = {new: stored[name] for name, new in names.items() if new}
    if config.tie_word_embeddings:
        state.pop("language_model.lm_head.weight", None)  # saved, but TinyLLaVA ties the head again on loading
    processors.widen(state, config.text_config.vocab_size)
    given = {"state": state, "parts": tuple(folders), "config": config}
    model = load_weights(LlavaForConditionalGeneration, checkpoint, dtype, **given)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model
