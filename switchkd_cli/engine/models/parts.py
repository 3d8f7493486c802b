"""A LLaVA student from its parts: a vision tower, a language model and a fresh projector."""

from __future__ import annotations

from pathlib import Path

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

from switchkd_cli.engine.models.llava import Llava
from switchkd_cli.errors import UserError
from switchkd_cli.locate import locate
from switchkd_cli.recipe.schema import Fresh, Parts

IMAGE = "<image>"
TOWERS = {"siglip_vision_model": SiglipVisionModel, "clip_vision_model": CLIPVisionModel}
CLASS_TOKENS = {"siglip_vision_model": 0, "clip_vision_model": 1}
DTYPE = "float32"
FRESH = {"vision": SiglipVisionConfig, "language": Qwen2Config}


def assemble(spec: Parts) -> Llava:
    """Builds V and L from checkpoints or from scratch (`fresh`: transformers config keys), P from scratch.

    The projector is Linear, GELU, Linear (`mlp2x_gelu`). Raises UserError for a part of another kind.
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
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    if isinstance(spec.vision, str):
        tower = TOWERS[seeing.model_type].from_pretrained(
            locate(spec.vision), config=seeing, dtype=DTYPE, use_safetensors=True
        )
        model.model.vision_tower.load_state_dict(tower.state_dict())
    if isinstance(spec.language, str):
        reader = Qwen2ForCausalLM.from_pretrained(locate(spec.language), dtype=DTYPE, use_safetensors=True)
        model.model.language_model.load_state_dict(reader.model.state_dict())
        model.lm_head.load_state_dict(reader.lm_head.state_dict())
    model.tie_weights()
    processor = LlavaProcessor(
        image_processor=_image_processor(spec.vision, seeing),
        tokenizer=words,
        patch_size=seeing.patch_size,
        vision_feature_select_strategy=spec.feature_select,
        num_additional_image_tokens=CLASS_TOKENS[seeing.model_type],
        chat_template=words.chat_template,
        image_token=IMAGE,
    )
    return Llava(model, processor)


def _config(part: str, source: str | Fresh) -> PreTrainedConfig:
    """The config of one part; a vision-language checkpoint's vision half counts as a tower."""
    if isinstance(source, Fresh):
        return FRESH[part](**source.fresh, **({"vision_use_head": False} if part == "vision" else {}))
    config = AutoConfig.from_pretrained(locate(source))
    if part == "language":
        if config.model_type != "qwen2":
            raise UserError(f"student.language: {source} is a {config.model_type} model, not Qwen2")
        return config
    config = getattr(config, "vision_config", config)
    if config.model_type not in TOWERS:
        known = ", ".join(TOWERS)
        raise UserError(f"student.vision: {source} is a {config.model_type} model, not one of {known}")
    if isinstance(config, SiglipVisionConfig | CLIPVisionConfig) and hasattr(config, "vision_use_head"):
        config.vision_use_head = False  # the pooling head would never see a gradient
    return config


def _tokenizer(spec: Parts) -> PreTrainedTokenizerBase:
    if spec.tokenizer is None and isinstance(spec.language, Fresh):
        raise UserError("student.tokenizer: missing", hint="a fresh language model needs `tokenizer: ...`")
    words = AutoTokenizer.from_pretrained(locate(spec.tokenizer or spec.language))
    if words.convert_tokens_to_ids(IMAGE) in (None, words.unk_token_id):
        words.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return words


def _image_processor(vision: str | Fresh, config: PreTrainedConfig):
    if isinstance(vision, str) and (Path(locate(vision)) / "preprocessor_config.json").is_file():
        return AutoImageProcessor.from_pretrained(locate(vision), backend="pil")
    size = {"height": config.image_size, "width": config.image_size}
    return SiglipImageProcessorPil(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
