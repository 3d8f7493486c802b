"""TinyLLaVA checkpoints as transformers' LLaVA models: other names, the same computation.

Two layouts hold one model. A fine-tuned folder has one set of weights whose names begin with `language_model.`,
`vision_tower._vision_tower.` and `connector._connector.`; a pre-trained folder has the sub-folders
`language_model/`, `vision_tower/` and `connector/` with the rest of these names. Image tokens are not in their
vocabulary (visual features take the place of id -200), and their `patch` selection drops the first feature of
any tower: of SigLIP, which has no class token, the first patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from transformers import (
    AutoConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from switchkd_cli.engine.hub import TOKENIZER_FILES, Stored, as_user_error, fetch
from switchkd_cli.engine.models import image_processors, tokenizers
from switchkd_cli.engine.models.chat_template import IN_PARTS
from switchkd_cli.engine.models.config_limits import check_config, check_sizes
from switchkd_cli.engine.models.llava import LlavaBlueprint
from switchkd_cli.engine.models.llava_config import CLASS_TOKENS, TOWERS, image_tokens_of
from switchkd_cli.engine.models.tokenizers import IMAGE
from switchkd_cli.engine.weights import PICKLED, SAFE, check_weights, read_tensors, take_weights
from switchkd_cli.errors import UserError
from switchkd_cli.registry import template

TYPE = "tinyllava"
READERS = ("qwen2", "llama")
SELECTIONS = {"patch": "default", "cls_patch": "full"}  # theirs -> transformers' words
LAYOUT = {
    "language_model": "language_model.",
    "vision_tower": "vision_tower._vision_tower.",
    "connector": "connector.",
}
"""Pre-trained layout: sub-folder -> what its names lack of the fine-tuned layout's."""
NAMES = {
    "language_model.": "language_model.",
    "vision_tower._vision_tower.": "vision_tower.",
    "connector._connector.0.": "multi_modal_projector.linear_1.",
    "connector._connector.2.": "multi_modal_projector.linear_2.",
}
"""Fine-tuned layout -> the names under which LLaVA models are published for transformers."""
UNUSED = (".vision_model.head.", ".position_ids", ".inv_freq")  # a pooling head, and what is computed anyway
NOT_CONFIG = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "model_name_or_path",
    "model_name_or_path2",
    "model_type",
    "torch_dtype",
    "transformers_version",
}
PUBLISHED = {"siglip_vision_model": "siglip-", "clip_vision_model": "clip-vit-"}
"""How the published towers' names begin, whose picture processing is known (siglip2's is another)."""


def read(stored: Stored) -> LlavaBlueprint:
    """The checkpoint's config, tokenizer and image processor in transformers' terms; of its weights only headers.

    Raises UserError, naming every problem, for what transformers' LLaVA can't express, weights that are not
    whole, or an image processor that is neither here nor known.
    """
    told = stored.json("config.json")
    _check(stored, told)
    check_weights(*_parts(stored))
    words = tokenizers.read_tokenizer(_words_of(stored, told))
    config = _config(stored, told, words)
    processor, notes = _pictures(stored, told, config.vision_config)
    return LlavaBlueprint.of(
        config,
        LlavaProcessor(
            image_processor=processor,
            tokenizer=words,
            patch_size=config.vision_config.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            num_additional_image_tokens=CLASS_TOKENS[config.vision_config.model_type],
            chat_template=IN_PARTS
            + template("tinyllava"),  # a base and an instruct model differ in their end token
            image_token=IMAGE,
        ),
        partial(_weights, stored, config, words),
        notes,
    )


def _check(stored: Stored, told: Mapping[str, Any]) -> None:
    """Raises UserError for every field that says what transformers' LLaVA can't be."""
    second = told.get("vision_model_name_or_path2") or ""
    fields = {
        "text_config.model_type": (_half(told, "text").get("model_type"), READERS),
        "vision_config.model_type": (_half(told, "vision").get("model_type"), TOWERS),
        "connector_type": (told.get("connector_type"), ("mlp2x_gelu",)),
        "vision_feature_select_strategy": (told.get("vision_feature_select_strategy", "patch"), SELECTIONS),
        "image_aspect_ratio": (told.get("image_aspect_ratio", "square"), ("square", "pad")),
    }
    problems = [
        f"{stored}: config.json: {field} is {value!r}, not {' or '.join(known)}"
        for field, (value, known) in fields.items()
        if value not in known
    ]
    problems += [f"{stored}: config.json: a second vision tower, {second!r}"] if second else []
    if stored.has("adapter_config.json"):
        problems.append(f"{stored}: holds LoRA adapters, not a whole model: merge them first")
    if problems:
        raise UserError(
            problems, hint="read are TinyLLaVA models of SigLIP or CLIP, an MLP and Qwen2 or Llama"
        )


def _half(told: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    half = told.get(f"{which}_config")
    return half if isinstance(half, Mapping) else {}


def _parts(stored: Stored) -> list[Stored]:
    """Where the weights are: the folder itself, or its three sub-folders."""
    whole = any(stored.has(name, f"{name}.index.json") for name in (SAFE, PICKLED))
    return (
        [stored]
        if whole or not (stored.folder / "connector").is_dir()
        else [stored / part for part in LAYOUT]
    )


def _words_of(stored: Stored, told: Mapping[str, Any]) -> Stored:
    """Where the tokenizer is: beside the weights, or where the config says it was taken from."""
    named = told.get("tokenizer_name_or_path") or told.get("llm_model_name_or_path")
    if stored.has(*tokenizers.FILES) or not named:
        return stored
    return fetch(named, f"{stored}: tokenizer", only=TOKENIZER_FILES)


def _config(stored: Stored, told: Mapping[str, Any], words: PreTrainedTokenizerBase) -> LlavaConfig:
    check_sizes(told, stored)
    with as_user_error(f"{stored}: no readable config"):
        seeing, reading = _part_config(told["vision_config"]), _part_config(told["text_config"])
        if seeing.model_type == "siglip_vision_model":
            seeing.vision_use_head = False  # the pooling head would never see a gradient
        reading.vocab_size = max(reading.vocab_size, len(words))
        config = LlavaConfig(
            vision_config=seeing,
            text_config=reading,
            image_token_index=words.convert_tokens_to_ids(IMAGE),
            vision_feature_layer=told.get("vision_feature_layer", -2),
            vision_feature_select_strategy=SELECTIONS[told.get("vision_feature_select_strategy", "patch")],
            projector_hidden_act="gelu",
            tie_word_embeddings=reading.tie_word_embeddings,
        )
        check_config(config, stored)
        config.image_seq_length = image_tokens_of(config)
    return config


def _part_config(told: Mapping[str, Any]) -> PretrainedConfig:
    """A part's config. What equals the class's default was not written down, and is the same default still."""
    return AutoConfig.for_model(told["model_type"], **{k: v for k, v in told.items() if k not in NOT_CONFIG})


def _pictures(stored: Stored, told: Mapping[str, Any], vision: PretrainedConfig):
    """The image processor, and a note where it was not found but is known.

    These checkpoints hold none. It is looked for in the folder all the same, then under the tower's name, which
    may be someone's path; the published SigLIP and CLIP towers are known by the last part of that name.
    """
    named = str(
        told["vision_config"].get("model_name_or_path") or told.get("vision_model_name_or_path") or ""
    )
    notes: tuple[str, ...] = ()
    for place in (stored, stored / "vision_tower"):
        if place.has(image_processors.FILE):
            return _squared(image_processors.read_image_processor(place), told), notes
    try:
        tower = fetch(named, f"{stored}: image processor", only=(image_processors.FILE,))
        return _squared(image_processors.read_image_processor(tower), told), notes
    except UserError as error:
        if not named.rstrip("/").rpartition("/")[2].startswith(PUBLISHED[vision.model_type]):
            raise UserError(
                f"{stored}: its image processor is not here: {named or 'no name'} "
                "(config.json: vision_config.model_name_or_path)",
                hint=f"copy the {image_processors.FILE} of the vision tower that it was trained with into its folder",
                code=error.code,
            ) from error
    notes = (f"{stored}: {named} is not here: pictures are prepared as that tower is published",)
    return _squared(image_processors.default_image_processor(vision), told), notes


def _squared(processor, told: Mapping[str, Any]):
    return (
        image_processors.with_square_padding(processor)
        if told.get("image_aspect_ratio") == "pad"
        else processor
    )


def _weights(
    stored: Stored, config: LlavaConfig, words: PreTrainedTokenizerBase, dtype: str
) -> LlavaForConditionalGeneration:
    state, unknown = {}, []
    for name, tensor in _stored_tensors(stored).items():
        begins = next((prefix for prefix in NAMES if name.startswith(prefix)), None)
        if any(part in name for part in UNUSED):
            continue
        if begins is None:
            unknown.append(name)
        else:
            state[NAMES[begins] + name.removeprefix(begins)] = tensor
    if unknown:
        raise UserError(f"{stored}: {len(unknown)} tensors of no known part, such as {unknown[0]}")
    if config.tie_word_embeddings:
        state.pop("language_model.lm_head.weight", None)  # saved, but theirs is tied again when it is loaded
    tokenizers.widen(state, config.text_config.vocab_size)
    model = take_weights(
        LlavaForConditionalGeneration, stored, state, dtype, parts=_parts(stored), config=config
    )
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    return model


def _stored_tensors(stored: Stored) -> dict[str, Tensor]:
    """Every tensor under its name in the fine-tuned layout."""
    parts = _parts(stored)
    if parts == [stored]:
        return read_tensors(stored)
    return {
        prefix + name: tensor
        for part, prefix in zip(parts, LAYOUT.values(), strict=True)
        for name, tensor in read_tensors(part).items()
    }
