"""The LLaVA family: folders of transformers and of TinyLLaVA, and a student made of parts.

Parts are a vision tower, a language model and a projector: a fresh one, or another model's with a fresh map behind it.
"""

import copy
import inspect
from typing import Any

import torch
import transformers
from transformers import LlavaConfig, LlavaProcessor, PretrainedConfig

from switchkd_cli.engine.hub import TOKENIZER_FILES, CheckpointFolder, as_user_error, configs_only, fetch
from switchkd_cli.engine.models import processors, tinyllava
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.checkpoint_files import check_config, read_config
from switchkd_cli.engine.models.family import Family, Published
from switchkd_cli.engine.models.frozen_projector import LlavaFrozenConfig
from switchkd_cli.engine.models.ldpnet import LlavaLdpConfig
from switchkd_cli.engine.models.llava import LANGUAGE_MODELS, SEAM, TOWERS, LlavaBlueprint, joined, processor_for
from switchkd_cli.engine.models.processors import IMAGE, own_template, read_tokenizer, widen
from switchkd_cli.engine.weights import check_memory, check_weights, load_weights
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe.schema import Fresh, Parts

PROJECTORS = {"mlp2x_gelu": LlavaConfig, "ldpnetv2": LlavaLdpConfig}
DTYPE = "float32"  # a checkpoint may be in half precision; training is not
FRESH = {"vision": transformers.SiglipVisionConfig, "language": transformers.Qwen2Config}
PART_HINT = "a part is a folder or hub id of a SigLIP or CLIP tower (vision), of a Qwen2 or Llama model (language)"


def design(spec: Parts, who: str = "student") -> LlavaBlueprint:
    """Return the model of these parts: V and L from checkpoints or with fresh weights (`fresh`), P fresh or behind a frozen one.

    Reads the parts' configs, the tokenizer, and the headers of the weights. Raises UserError for a part of another kind, an
    unknown configuration key, or a part without files; `build` of the blueprint does for weights that don't fit the config.
    """
    vision, language, other = (_part_folder(spec, part, who) for part in ("vision", "language", "frozen_projector"))
    # complete models, of which one module is the part
    whole, speaker, frozen = _whole(vision), _whole(language), LLAVA.read(other) if other else None
    tokenizer = read_tokenizer(_tokenizer_folder(spec, language, who))
    vision_config = copy.deepcopy(whole.config.vision_config) if whole else part_config(spec, "vision", who, vision)
    text_config = copy.deepcopy(speaker.config.text_config) if speaker else part_config(spec, "language", who, language)
    if language is None:
        text_config.vocab_size = len(tokenizer)
    text_config.pad_token_id, text_config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    kept = frozen.config if frozen else None
    config = _config(spec, who, vision_config, text_config, kept, tokens=len(tokenizer), image_token=image_token)
    image_processor = _image_processor(vision, whole)
    if spec.image_processor is not None:
        named = fetch(spec.image_processor, f"{who}.image_processor", allow_pickle=spec.allow_pickle)
        image_processor = _image_processor(named, _whole(named))
        if image_processor is None:
            raise UserError(f"{named}: no {processors.FILE} there, and no complete model")
    check_weights(*filter(None, (None if whole else vision, None if speaker else language)))

    def weights(dtype: str) -> transformers.LlavaForConditionalGeneration:
        """Return the model with fresh weights, except those that the named parts bring."""
        with as_user_error(f"{who}: no model can be built of these parts"):
            check_memory(transformers.AutoModelForImageTextToText, config, who)
            model = transformers.AutoModelForImageTextToText.from_config(config, dtype=DTYPE)
        if vision:
            tower = whole.weights(DTYPE).model.vision_tower if whole else None
            tower = tower or load_weights(transformers.AutoModel, vision, config=config.vision_config)
            model.model.vision_tower.load_state_dict(tower.state_dict())
        if language:
            if speaker:
                complete = speaker.weights(DTYPE)
                state = complete.model.language_model.state_dict() | {"lm_head.weight": complete.lm_head.weight}
            else:
                state = load_weights(transformers.AutoModelForCausalLM, language).state_dict()
            embedded = next(table for name, table in state.items() if name.endswith("embed_tokens.weight"))
            if config.text_config.tie_word_embeddings and not torch.equal(state["lm_head.weight"], embedded):
                raise UserError(
                    f"{language}: its config ties the head to the embeddings, its file has another head",
                    hint="set tie_word_embeddings to false in its config.json, wherever it stands there",
                )
            state = widen(state, config.text_config.vocab_size)
            model.lm_head.load_state_dict({"weight": state.pop("lm_head.weight")})
            state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
            model.model.language_model.load_state_dict(state)
        if frozen:
            state = frozen.weights(DTYPE).model.multi_modal_projector.state_dict()
            model.model.multi_modal_projector.frozen.load_state_dict(state)
        model.tie_weights()
        return model.to(getattr(torch, dtype))

    processor = processor_for(config, image_processor, tokenizer, own_template(tokenizer))
    return LlavaBlueprint.of(config, processor, weights, whole.notes if whole else ())


def _config(
    spec: Parts, who: str, vision: PretrainedConfig, text: PretrainedConfig, frozen: Any, tokens: int, image_token: int
) -> LlavaConfig:
    """Return the config of these parts. `frozen`: the whole config of the model whose projector is kept, if any."""
    settings = {"vision_feature_layer": spec.feature_layer, "vision_feature_select_strategy": spec.feature_select}
    if frozen is None:
        return joined(PROJECTORS[spec.projector], vision, text, tokens, image_token, **settings)
    where, mlp = f"{who}.frozen_projector: {spec.frozen_projector}", (LlavaConfig, "gelu", True, "mlp2x_gelu")
    if (type(frozen), frozen.projector_hidden_act, frozen.multimodal_projector_bias, spec.projector) != mlp:
        raise UserError(f"{where}: only LLaVA's mlp2x_gelu can be kept", hint=f"{who}.frozen_projector=null")
    reads, layer = frozen.vision_config.hidden_size, frozen.vision_feature_layer
    if (reads, layer) != (vision.hidden_size, spec.feature_layer):
        gives = f"the tower gives {vision.hidden_size} from layer {spec.feature_layer}"
        hint = f"{who}.feature_layer={layer}, and a tower of its build as {who}.vision"
        raise UserError(f"{where}: it reads features of width {reads} from layer {layer}, {gives}", hint)
    settings["frozen_width"] = frozen.text_config.hidden_size
    return joined(LlavaFrozenConfig, vision, text, tokens, image_token, **settings)


def _part_folder(spec: Parts, part: str, who: str) -> CheckpointFolder | None:
    """Return where a named part is; None for a fresh one."""
    source = getattr(spec, part)
    return fetch(source, f"{who}.{part}", allow_pickle=spec.allow_pickle) if isinstance(source, str) else None


def _tokenizer_folder(spec: Parts, language: CheckpointFolder | None, who: str) -> CheckpointFolder:
    """Return where the tokenizer is: under its own name, or with the language model."""
    if spec.tokenizer is not None:
        return fetch(spec.tokenizer, f"{who}.tokenizer", only=TOKENIZER_FILES)
    if language is None:
        raise UserError(f"{who}.tokenizer: missing", hint="a fresh language model needs `tokenizer: ...`")
    return language


def _whole(checkpoint: CheckpointFolder | None) -> Blueprint | None:
    if checkpoint and checkpoint.has("config.json") and LLAVA.recognises(checkpoint.json("config.json")):
        return LLAVA.read(checkpoint)
    return None


def _image_processor(checkpoint: CheckpointFolder | None, whole: Blueprint | None):
    """Return the image processor that is stored with a tower or with a whole model, or None."""
    if whole:
        return whole.image_processor
    if checkpoint is None or not checkpoint.has(processors.FILE):
        return None
    return processors.read_image_processor(checkpoint)


def part_config(spec: Parts, part: str, who: str, checkpoint: CheckpointFolder | None) -> PretrainedConfig:
    """Return the config of a part: a fresh one's, or a named one's; of a two-tower checkpoint (SigLIP, CLIP) the tower's."""
    if checkpoint is None:
        return fresh_config(part, getattr(spec, part), who)
    config, known = read_config(checkpoint), TOWERS if part == "vision" else LANGUAGE_MODELS
    if part == "vision":
        config = getattr(config, "vision_config", config)
    if config.model_type not in known:
        raise UserError(f"{checkpoint} is a {config.model_type} model, not one of {', '.join(known)}", hint=PART_HINT)
    return config


def fresh_config(part: str, source: Any, who: str) -> PretrainedConfig:
    """Return the config of a part with random weights. Unknown keys are refused: transformers would accept them."""
    where = f"{who}.{part}.fresh"
    known = inspect.signature(FRESH[part]).parameters
    problems = [f"{where}.{key}: unknown key{did_you_mean(key, known)}" for key in source.fresh if key not in known]
    if problems:
        raise UserError(problems)
    check_config(source.fresh, where)
    with as_user_error(where):
        config = FRESH[part](**source.fresh)
    check_config(config, where)
    width, heads = config.hidden_size, config.num_attention_heads
    unit = heads if part == "vision" else 2 * heads  # rotary positions rotate pairs of a head's features
    if width % unit:
        raise UserError(f"{where}: hidden_size must be a multiple of {unit}, got {width}")
    if heads % getattr(config, "num_key_value_heads", heads):
        raise UserError(f"{where}: {heads} heads can't share {config.num_key_value_heads} num_key_value_heads")
    return config


def published_config(spec: Parts, who: str, published: Published) -> tuple[LlavaConfig, int] | None:
    """Return the config of a model whose parts are not all on this machine, and its number of tokens; None: not known."""
    vision_config, text_config = (_planned_config(spec, part, who, published) for part in ("vision", "language"))
    kept = _planned_config(spec, "frozen_projector", who, published) if spec.frozen_projector else None
    if vision_config is None or text_config is None or (spec.frozen_projector and kept is None):
        return None
    facts = published("language", spec.language) if isinstance(spec.language, str) else {}
    tokens = facts["tokens"] + 1 if "tokens" in facts else text_config.vocab_size
    return _config(spec, who, vision_config, text_config, kept, tokens=tokens, image_token=tokens - 1), tokens


def _planned_config(spec: Parts, part: str, who: str, published: Published) -> Any:
    """Return a part's config (of a frozen projector its model's): fresh, read here, or published; None where it is not known."""
    source = getattr(spec, part)
    if isinstance(source, Fresh):
        return fresh_config(part, source, who)
    try:
        with configs_only():
            folder = fetch(source, f"{who}.{part}")
            return LLAVA.read(folder).config if part == "frozen_projector" else part_config(spec, part, who, folder)
    except UserError:
        facts = published(part, source)
        return transformers.AutoConfig.for_model(**copy.deepcopy(facts["config"])) if facts else None


class LlavaFamily(Family):
    """The LLaVA family: transformers' LLaVA, ours with LDPNetV2, TinyLLaVA's folders, and models from parts."""

    from_parts = staticmethod(design)
    published_config = staticmethod(published_config)

    def read(self, checkpoint: CheckpointFolder) -> Blueprint:
        if checkpoint.json("config.json").get("model_type") == tinyllava.TYPE:
            return tinyllava.read(checkpoint)
        return super().read(checkpoint)

    def blueprint(self, config: LlavaConfig, processor: LlavaProcessor, *rest: Any) -> LlavaBlueprint:
        if processor.patch_size is None:  # older saved ones lack the fields from which image tokens are counted
            parts = processor.image_processor, processor.tokenizer, processor.chat_template
            processor = processor_for(config, *parts)
        return LlavaBlueprint.of(config, processor, *rest)


OTHERS = LlavaLdpConfig.model_type, LlavaFrozenConfig.model_type, tinyllava.TYPE
LLAVA = LlavaFamily("llava", SEAM, OTHERS, TOWERS)
