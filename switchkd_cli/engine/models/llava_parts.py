"""Build a LLaVA student from parts: a vision tower, a language model and a fresh projector."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    AutoConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
)

from switchkd_cli.engine.hub import TOKENIZER_FILES, Stored, as_user_error, configs_only, fetch
from switchkd_cli.engine.models import image_processors
from switchkd_cli.engine.models.config_limits import check_config, check_sizes, read_config
from switchkd_cli.engine.models.family import Published
from switchkd_cli.engine.models.ldpnet import LlavaLdpConfig, LlavaLdpForConditionalGeneration
from switchkd_cli.engine.models.llava import LlavaBlueprint
from switchkd_cli.engine.models.llava_config import CLASS_TOKENS, TOWERS, image_tokens_of
from switchkd_cli.engine.models.llava_folder import is_whole, read_whole
from switchkd_cli.engine.models.tokenizers import IMAGE, own_template, read_tokenizer, widen
from switchkd_cli.engine.weights import check_memory, check_weights, load_weights
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe.schema import Fresh, Parts

LANGUAGE_MODELS = {"qwen2": Qwen2ForCausalLM, "llama": LlamaForCausalLM}
PROJECTORS = {
    "mlp2x_gelu": (LlavaConfig, LlavaForConditionalGeneration),
    "ldpnetv2": (LlavaLdpConfig, LlavaLdpForConditionalGeneration),
}
DTYPE = "float32"
FRESH = {"vision": SiglipVisionConfig, "language": Qwen2Config}
PART_HINT = "a part is a folder or hub id of a SigLIP or CLIP tower (vision), of a Qwen2 or Llama model (language)"


def design(spec: Parts, who: str = "student") -> LlavaBlueprint:
    """Return the model of these parts: V and L from checkpoints or with fresh weights (`fresh`), P always fresh.

    Reads the parts' configs, the tokenizer, and the headers of the weights. Raises UserError for a part of another kind, an
    unknown configuration key, or a part without files; `build` of the blueprint does for weights that don't fit the config.
    """
    vision, language = (_part_folder(spec, part, who) for part in ("vision", "language"))
    whole = read_whole(vision) if vision and is_whole(vision) else None  # its vision tower is the part
    tokenizer = read_tokenizer(_tokenizer_folder(spec, language, who))
    vision_config = _tower_config(vision, whole) if vision else fresh_config("vision", spec.vision, who)
    text_config = part_config(language) if language else fresh_config("language", spec.language, who)
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer)) if language else len(tokenizer)
    vision_config.dtype = text_config.dtype = DTYPE  # a checkpoint may be in half precision; training is not
    text_config.pad_token_id, text_config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    config_class, model_class = PROJECTORS[spec.projector]
    config = config_class(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=spec.feature_layer,
        vision_feature_select_strategy=spec.feature_select,
        projector_hidden_act="gelu",
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    config.image_seq_length = image_tokens_of(config)
    image_processor = _named_image_processor(spec, who) or _tower_image_processor(vision, whole)
    processor = _processor(config, image_processor, tokenizer)
    check_weights(*filter(None, (None if whole else vision, language)))
    tower = partial(_load_tower, vision, whole, config) if vision else None
    notes = whole.notes if whole else ()
    return LlavaBlueprint.of(
        config, processor, partial(_weights, model_class, config, tokenizer, tower, language, who), notes
    )


def _processor(config: LlavaConfig, image_processor, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Return transformers' processor, which writes one image token for each visual token of either projector."""
    pooling = getattr(config, "projector_pooling", 1)
    pools = pooling > 1
    return LlavaProcessor(
        image_processor=image_processor or image_processors.default_image_processor(config.vision_config),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size * pooling,
        vision_feature_select_strategy="full" if pools else config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if pools else CLASS_TOKENS[config.vision_config.model_type],
        chat_template=own_template(tokenizer),
        image_token=IMAGE,
    )


def _weights(
    model_class: type[LlavaForConditionalGeneration],
    config: LlavaConfig,
    tokenizer: PreTrainedTokenizerBase,
    tower: Callable[[], PreTrainedModel] | None,
    language: Stored | None,
    who: str,
    dtype: str,
) -> LlavaForConditionalGeneration:
    """Return the model with fresh weights, except those that the named parts bring."""
    with as_user_error(f"{who}: no model can be built of these parts"):
        check_memory(model_class, config, who)
        model = model_class(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    if tower:
        model.model.vision_tower.load_state_dict(tower().state_dict())
    if language:
        language_model = load_weights(LANGUAGE_MODELS[config.text_config.model_type], language)
        state = widen(language_model.state_dict(), config.text_config.vocab_size)
        model.lm_head.load_state_dict({"weight": state.pop("lm_head.weight")})
        model.model.language_model.load_state_dict(
            {name.removeprefix("model."): tensor for name, tensor in state.items()}
        )
    model.tie_weights()
    return model.to(getattr(torch, dtype))


def _part_folder(spec: Parts, part: str, who: str) -> Stored | None:
    """Return where a named part is; None for a fresh one."""
    source = getattr(spec, part)
    if isinstance(source, Fresh):
        return None
    return fetch(source, f"{who}.{part}", allow_pickle=spec.allow_pickle)


def _tokenizer_folder(spec: Parts, language: Stored | None, who: str) -> Stored:
    """Return where the tokenizer is: under its own name, or with the language model."""
    if spec.tokenizer is not None:
        return fetch(spec.tokenizer, f"{who}.tokenizer", only=TOKENIZER_FILES)
    if language is None:
        raise UserError(f"{who}.tokenizer: missing", hint="a fresh language model needs `tokenizer: ...`")
    return language


def _named_image_processor(spec: Parts, who: str):
    """Return the image processor of the tower or model that the recipe names for it. Raises UserError where it has none."""
    if spec.image_processor is None:
        return None
    folder = fetch(spec.image_processor, f"{who}.image_processor", allow_pickle=spec.allow_pickle)
    if image_processor := _tower_image_processor(folder, read_whole(folder) if is_whole(folder) else None):
        return image_processor
    raise UserError(f"{folder}: no {image_processors.FILE} there, and no complete model")


def _tower_image_processor(vision: Stored | None, whole: LlavaBlueprint | None):
    """Return the tower's own image processor, or None."""
    if whole:
        return whole.inputs.processor.image_processor
    return image_processors.read_image_processor(vision) if vision and vision.has(image_processors.FILE) else None


def _tower_config(vision: Stored, whole: LlavaBlueprint | None) -> PretrainedConfig:
    return copy.deepcopy(whole.config.vision_config) if whole else part_config(vision)


def _load_tower(vision: Stored, whole: LlavaBlueprint | None, config: LlavaConfig) -> PreTrainedModel:
    """Return the named tower with its weights."""
    if whole:
        return whole.weights(DTYPE).model.vision_tower
    return load_weights(TOWERS[config.vision_config.model_type], vision, config=config.vision_config)


def part_config(part: Stored) -> PretrainedConfig:
    """Return the config of a named part; for a two-tower checkpoint (SigLIP, CLIP) that of its vision tower."""
    config = read_config(part)
    is_vision = part.who.endswith(".vision")
    if is_vision:
        config = getattr(config, "vision_config", config)
    known = TOWERS if is_vision else LANGUAGE_MODELS
    if config.model_type not in known:
        raise UserError(f"{part} is a {config.model_type} model, not one of {', '.join(known)}", hint=PART_HINT)
    check_config(config, part)
    if config.model_type == "siglip_vision_model":
        config.vision_use_head = False  # the pooling head would never see a gradient
    return config


def fresh_config(part: str, source: Any, who: str) -> PretrainedConfig:
    """Return the config of a part with random weights. Unknown keys are refused: transformers would accept them."""
    known = inspect.signature(FRESH[part]).parameters
    problems = [
        f"{who}.{part}.fresh.{key}: unknown key{did_you_mean(key, known)}" for key in source.fresh if key not in known
    ]
    if problems:
        raise UserError(problems)
    check_sizes(source.fresh, f"{who}.{part}.fresh")
    with as_user_error(f"{who}.{part}.fresh"):
        config = FRESH[part](**source.fresh, **({"vision_use_head": False} if part == "vision" else {}))
    check_config(config, f"{who}.{part}.fresh")
    width, heads = config.hidden_size, config.num_attention_heads
    unit = heads if part == "vision" else 2 * heads  # rotary positions rotate pairs of a head's features
    if width % unit:
        raise UserError(f"{who}.{part}.fresh: hidden_size must be a multiple of {unit}, got {width}")
    if heads % getattr(config, "num_key_value_heads", heads):
        raise UserError(
            f"{who}.{part}.fresh: {heads} heads can't share {config.num_key_value_heads} num_key_value_heads"
        )
    return config


def published_config(spec: Parts, who: str, published: Published) -> tuple[LlavaConfig, int] | None:
    """Return the config of a model whose parts are not all on this machine, and its number of tokens; None: not known."""
    vision_config, text_config = (_planned_config(spec, part, who, published) for part in ("vision", "language"))
    if vision_config is None or text_config is None:
        return None
    facts = published("language", spec.language) if isinstance(spec.language, str) else {}
    tokens = facts["tokens"] + 1 if "tokens" in facts else text_config.vocab_size
    text_config.vocab_size = max(text_config.vocab_size, tokens)
    config = PROJECTORS[spec.projector][0](
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=tokens - 1,
        vision_feature_layer=spec.feature_layer,
        vision_feature_select_strategy=spec.feature_select,
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    return config, tokens


def _planned_config(spec: Parts, part: str, who: str, published: Published) -> Any:
    """Return a part's config: fresh, read from this machine, or published; None where it is not known."""
    source = getattr(spec, part)
    if isinstance(source, Fresh):
        return fresh_config(part, source, who)
    try:
        with configs_only():
            return part_config(fetch(source, f"{who}.{part}"))
    except UserError:
        facts = published(part, source)
        return AutoConfig.for_model(**copy.deepcopy(facts["config"])) if facts else None
