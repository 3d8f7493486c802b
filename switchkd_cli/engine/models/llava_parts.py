"""A LLaVA student from its parts: a vision tower, a language model and a fresh projector."""

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

READERS = {"qwen2": Qwen2ForCausalLM, "llama": LlamaForCausalLM}
PROJECTORS = {
    "mlp2x_gelu": (LlavaConfig, LlavaForConditionalGeneration),
    "ldpnetv2": (LlavaLdpConfig, LlavaLdpForConditionalGeneration),
}
DTYPE = "float32"
FRESH = {"vision": SiglipVisionConfig, "language": Qwen2Config}
PART_HINT = (
    "a part is a folder or hub id of a SigLIP or CLIP tower (vision), of a Qwen2 or Llama model (language)"
)


def design(spec: Parts, who: str = "student") -> LlavaBlueprint:
    """The model of these parts: V and L from checkpoints or from scratch (`fresh`), P from scratch.

    Reads the parts' configs, the tokenizer, and the headers of the weights. Raises UserError for a part of
    another kind, a configuration key that does not exist, or a part without files; the blueprint's `build`
    does for weights that are not the config's.
    """
    seen, read = (_stored(spec, part, who) for part in ("vision", "language"))
    whole = read_whole(seen) if seen and is_whole(seen) else None  # its vision half counts as a tower
    words = read_tokenizer(_words_of(spec, read, who))
    seeing = _tower_config(seen, whole) if seen else fresh_config("vision", spec.vision, who)
    reading = part_config(read) if read else fresh_config("language", spec.language, who)
    reading.vocab_size = max(reading.vocab_size, len(words)) if read else len(words)
    seeing.dtype = reading.dtype = DTYPE  # a checkpoint may be stored in half precision; training is not
    reading.pad_token_id, reading.eos_token_id = words.pad_token_id, words.eos_token_id
    config_class, model_class = PROJECTORS[spec.projector]
    config = config_class(
        vision_config=seeing,
        text_config=reading,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=spec.feature_layer,
        vision_feature_select_strategy=spec.feature_select,
        projector_hidden_act="gelu",
        tie_word_embeddings=reading.tie_word_embeddings,
    )
    config.image_seq_length = image_tokens_of(config)
    processor = _processor(config, _named_pictures(spec, who) or _pictures(seen, whole), words)
    check_weights(*filter(None, (None if whole else seen, read)))
    tower = partial(_tower, seen, whole, config) if seen else None
    notes = whole.notes if whole else ()
    return LlavaBlueprint.of(
        config, processor, partial(_weights, model_class, config, words, tower, read, who), notes
    )


def _processor(config: LlavaConfig, prepare, words: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Counts an image token for each pooled block of patches, whatever the projector."""
    pooling = getattr(config, "projector_pooling", 1)
    pooled = pooling > 1
    return LlavaProcessor(
        image_processor=prepare or image_processors.default_image_processor(config.vision_config),
        tokenizer=words,
        patch_size=config.vision_config.patch_size * pooling,
        vision_feature_select_strategy="full" if pooled else config.vision_feature_select_strategy,
        num_additional_image_tokens=0 if pooled else CLASS_TOKENS[config.vision_config.model_type],
        chat_template=own_template(words),
        image_token=IMAGE,
    )


def _weights(
    model_class: type[LlavaForConditionalGeneration],
    config: LlavaConfig,
    words: PreTrainedTokenizerBase,
    tower: Callable[[], PreTrainedModel] | None,
    read: Stored | None,
    who: str,
    dtype: str,
) -> LlavaForConditionalGeneration:
    """The model with fresh weights, then those of the named parts."""
    with as_user_error(f"{who}: no model can be built of these parts"):
        check_memory(model_class, config, who)
        model = model_class(config)
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    if tower:
        model.model.vision_tower.load_state_dict(tower().state_dict())
    if read:
        reader = load_weights(READERS[config.text_config.model_type], read)
        state = widen(reader.state_dict(), config.text_config.vocab_size)
        model.lm_head.load_state_dict({"weight": state.pop("lm_head.weight")})
        model.model.language_model.load_state_dict(
            {name.removeprefix("model."): tensor for name, tensor in state.items()}
        )
    model.tie_weights()
    return model.to(getattr(torch, dtype))


def _stored(spec: Parts, part: str, who: str) -> Stored | None:
    """Where a named part is; None for a fresh one."""
    source = getattr(spec, part)
    if isinstance(source, Fresh):
        return None
    return fetch(source, f"{who}.{part}", allow_pickle=spec.allow_pickle)


def _words_of(spec: Parts, read: Stored | None, who: str) -> Stored:
    """Where the tokenizer is: named, or beside the language model."""
    if spec.tokenizer is not None:
        return fetch(spec.tokenizer, f"{who}.tokenizer", only=TOKENIZER_FILES)
    if read is None:
        raise UserError(f"{who}.tokenizer: missing", hint="a fresh language model needs `tokenizer: ...`")
    return read


def _named_pictures(spec: Parts, who: str):
    """The image processor of the named tower or whole model. Raises UserError where it has none."""
    if spec.image_processor is None:
        return None
    named = fetch(spec.image_processor, f"{who}.image_processor", allow_pickle=spec.allow_pickle)
    if found := _pictures(named, read_whole(named) if is_whole(named) else None):
        return found
    raise UserError(f"{named}: no {image_processors.FILE} there, and no whole model")


def _pictures(seen: Stored | None, whole: LlavaBlueprint | None):
    """The tower's own image processor, if it has one."""
    if whole:
        return whole.inputs.processor.image_processor
    return image_processors.read_image_processor(seen) if seen and seen.has(image_processors.FILE) else None


def _tower_config(seen: Stored, whole: LlavaBlueprint | None) -> PretrainedConfig:
    return copy.deepcopy(whole.config.vision_config) if whole else part_config(seen)


def _tower(seen: Stored, whole: LlavaBlueprint | None, config: LlavaConfig) -> PreTrainedModel:
    """The named tower with its weights."""
    if whole:
        return whole.weights(DTYPE).model.vision_tower
    return load_weights(TOWERS[config.vision_config.model_type], seen, config=config.vision_config)


def part_config(part: Stored) -> PretrainedConfig:
    """The config of a named part; of a model of pictures and text (SigLIP, CLIP), that of its vision half."""
    config = read_config(part)
    seeing = part.who.endswith(".vision")
    if seeing:
        config = getattr(config, "vision_config", config)
    known = TOWERS if seeing else READERS
    if config.model_type not in known:
        raise UserError(
            f"{part} is a {config.model_type} model, not one of {', '.join(known)}", hint=PART_HINT
        )
    check_config(config, part)
    if config.model_type == "siglip_vision_model":
        config.vision_use_head = False  # the pooling head would never see a gradient
    return config


def fresh_config(part: str, source: Any, who: str) -> PretrainedConfig:
    """The config of a part with random weights. transformers takes any key: those it does not know are refused."""
    known = inspect.signature(FRESH[part]).parameters
    problems = [
        f"{who}.{part}.fresh.{key}: unknown key{did_you_mean(key, known)}"
        for key in source.fresh
        if key not in known
    ]
    if problems:
        raise UserError(problems)
    check_sizes(source.fresh, f"{who}.{part}.fresh")
    with as_user_error(f"{who}.{part}.fresh"):
        config = FRESH[part](**source.fresh, **({"vision_use_head": False} if part == "vision" else {}))
    check_config(config, f"{who}.{part}.fresh")
    width, heads = config.hidden_size, config.num_attention_heads
    unit = heads if part == "vision" else 2 * heads  # rotary positions turn pairs of a head's features
    if width % unit:
        raise UserError(f"{who}.{part}.fresh: hidden_size must be a multiple of {unit}, got {width}")
    if heads % getattr(config, "num_key_value_heads", heads):
        raise UserError(
            f"{who}.{part}.fresh: {heads} heads can't share {config.num_key_value_heads} num_key_value_heads"
        )
    return config


def published_config(spec: Parts, who: str, published: Published) -> tuple[LlavaConfig, int] | None:
    """The config of a model whose parts are not all here, and the number of its tokens; None where one is not known."""
    vision, text = (_planned_part(spec, part, who, published) for part in ("vision", "language"))
    if vision is None or text is None:
        return None
    facts = published("language", spec.language) if isinstance(spec.language, str) else {}
    tokens = facts["tokens"] + 1 if "tokens" in facts else text.vocab_size
    text.vocab_size = max(text.vocab_size, tokens)
    config = PROJECTORS[spec.projector][0](
        vision_config=vision,
        text_config=text,
        image_token_index=tokens - 1,
        vision_feature_layer=spec.feature_layer,
        vision_feature_select_strategy=spec.feature_select,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    return config, tokens


def _planned_part(spec: Parts, part: str, who: str, published: Published) -> Any:
    """A part's config: fresh, read from this machine, or published; None where it is not known."""
    source = getattr(spec, part)
    if isinstance(source, Fresh):
        return fresh_config(part, source, who)
    try:
        with configs_only():
            return part_config(fetch(source, f"{who}.{part}"))
    except UserError:
        facts = published(part, source)
        return AutoConfig.for_model(**copy.deepcopy(facts["config"])) if facts else None
