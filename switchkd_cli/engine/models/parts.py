"""A LLaVA student from its parts: a vision tower, a language model and a fresh projector."""

from __future__ import annotations

import inspect

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from switchkd_cli.engine.batch import IMAGE
from switchkd_cli.engine.models.llava import Blueprint, Llava
from switchkd_cli.engine.stored import check_weights, explained, fetch, load_weights
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe.schema import Fresh, Parts

TOWERS = {"siglip_vision_model": SiglipVisionModel, "clip_vision_model": CLIPVisionModel}
CLASS_TOKENS = {"siglip_vision_model": 0, "clip_vision_model": 1}
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
DTYPE = "float32"
FRESH = {"vision": SiglipVisionConfig, "language": Qwen2Config}
PART_HINT = "a part is a folder or hub id of a SigLIP or CLIP tower (vision), of a Qwen2 model (language)"


def design(spec: Parts) -> Blueprint:
    """What `assemble` will build, from the parts' configs and the tokenizer; no weights are read.

    Raises UserError for a part of another kind, a configuration key that does not exist, or a part without files.
    """
    words = _tokenizer(spec)
    seeing, reading = _config("vision", spec.vision), _config("language", spec.language)
    if isinstance(spec.language, Fresh):
        reading.vocab_size = len(words)
    seeing.dtype = reading.dtype = DTYPE  # a checkpoint may be stored in half precision; training is not
    reading.pad_token_id, reading.eos_token_id = words.pad_token_id, words.eos_token_id
    config = LlavaConfig(
        vision_config=seeing,
        text_config=reading,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=spec.feature_layer,
        vision_feature_select_strategy=spec.feature_select,
        projector_hidden_act="gelu",
        image_seq_length=(seeing.image_size // seeing.patch_size) ** 2,
        tie_word_embeddings=reading.tie_word_embeddings,
    )
    processor = LlavaProcessor(
        image_processor=_image_processor(spec.vision, seeing),
        tokenizer=words,
        patch_size=seeing.patch_size,
        vision_feature_select_strategy=spec.feature_select,
        num_additional_image_tokens=CLASS_TOKENS[seeing.model_type],
        chat_template=words.chat_template,
        image_token=IMAGE,
    )
    return Blueprint(config, processor)


def assemble(spec: Parts) -> Llava:
    """Builds V and L from checkpoints or from scratch (`fresh`: transformers config keys), P from scratch.

    The projector is Linear, GELU, Linear (`mlp2x_gelu`). Raises UserError as `design` does, and for weights that
    are not whole.
    """
    blueprint = design(spec)
    config, words = blueprint.config, blueprint.processor.tokenizer
    with explained("student: no model can be built of these parts"):
        model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    if isinstance(spec.vision, str):
        tower_class, seeing = TOWERS[config.vision_config.model_type], config.vision_config
        tower = load_weights(tower_class, spec.vision, "student.vision", config=seeing)
        model.model.vision_tower.load_state_dict(tower.state_dict())
    if isinstance(spec.language, str):
        reader = load_weights(Qwen2ForCausalLM, spec.language, "student.language")
        model.model.language_model.load_state_dict(reader.model.state_dict())
        model.lm_head.load_state_dict(reader.lm_head.state_dict())
    model.tie_weights()
    return Llava(model, blueprint.processor)


def check_parts(spec: Parts) -> None:
    """Raises UserError unless the weights of the named parts are whole; reads no tensor."""
    for part in ("vision", "language"):
        if isinstance(source := getattr(spec, part), str):
            check_weights(source, f"student.{part}")


def _config(part: str, source: str | Fresh) -> PreTrainedConfig:
    """The config of one part; a vision-language checkpoint's vision half counts as a tower."""
    who = f"student.{part}"
    if isinstance(source, Fresh):
        return _fresh(part, source)
    with explained(f"{who}: {source}: no readable config"):
        config = AutoConfig.from_pretrained(fetch(source, who))
    if part == "language":
        if config.model_type != "qwen2":
            raise UserError(f"{who}: {source} is a {config.model_type} model, not Qwen2", hint=PART_HINT)
        return config
    config = getattr(config, "vision_config", config)
    if config.model_type not in TOWERS:
        known = ", ".join(TOWERS)
        raise UserError(f"{who}: {source} is a {config.model_type} model, not one of {known}", hint=PART_HINT)
    if isinstance(config, SiglipVisionConfig | CLIPVisionConfig) and hasattr(config, "vision_use_head"):
        config.vision_use_head = False  # the pooling head would never see a gradient
    return config


def _fresh(part: str, source: Fresh) -> PreTrainedConfig:
    """The config of a part with random weights. transformers takes any key: those it does not know are refused."""
    known = inspect.signature(FRESH[part]).parameters
    problems = [
        f"student.{part}.fresh.{key}: unknown key{did_you_mean(key, known)}"
        for key in source.fresh
        if key not in known
    ]
    if problems:
        raise UserError(problems)
    with explained(f"student.{part}.fresh"):
        config = FRESH[part](**source.fresh, **({"vision_use_head": False} if part == "vision" else {}))
    width, heads = config.hidden_size, config.num_attention_heads
    unit = heads if part == "vision" else 2 * heads  # rotary positions turn pairs of a head's features
    if width % unit:
        raise UserError(f"student.{part}.fresh: hidden_size must be a multiple of {unit}, got {width}")
    if heads % getattr(config, "num_key_value_heads", heads):
        raise UserError(
            f"student.{part}.fresh: {heads} heads can't share {config.num_key_value_heads} num_key_value_heads"
        )
    return config


def _tokenizer(spec: Parts) -> PreTrainedTokenizerBase:
    if spec.tokenizer is None and isinstance(spec.language, Fresh):
        raise UserError("student.tokenizer: missing", hint="a fresh language model needs `tokenizer: ...`")
    name = spec.tokenizer or spec.language
    who = "student.tokenizer" if spec.tokenizer else "student.language"
    folder = fetch(name, who)
    if not any((folder / file).is_file() for file in VOCABULARIES):  # transformers would make an empty one up
        raise UserError(f"{who}: {name}: no tokenizer there", hint="name one: student.tokenizer=...")
    with explained(f"{who}: {name}: no readable tokenizer"):
        words = AutoTokenizer.from_pretrained(folder)
    if words.convert_tokens_to_ids(IMAGE) in (None, words.unk_token_id):
        words.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return words


def _image_processor(vision: str | Fresh, config: PreTrainedConfig):
    if isinstance(vision, str):
        folder = fetch(vision, "student.vision")
        if (folder / "preprocessor_config.json").is_file():
            with explained(f"student.vision: {vision}: no readable preprocessor_config.json"):
                return AutoImageProcessor.from_pretrained(folder, backend="pil")
    size = {"height": config.image_size, "width": config.image_size}
    return SiglipImageProcessorPil(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
