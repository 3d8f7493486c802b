"""What a model must be to be trained or asked, and what a teacher and a student must share.

All of it is seen in configs, tokenizers and image processors, so that it is known before any weight is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import LlavaConfig, PretrainedConfig, PreTrainedTokenizerBase

from switchkd_cli import registry
from switchkd_cli.engine.batch import IMAGE, prepared
from switchkd_cli.engine.data.prompt_template import after_answer, end_of, special
from switchkd_cli.engine.hub import explained
from switchkd_cli.engine.models.llava import Blueprint, features_of
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Stage, Term

LARGEST = 1 << 12  # pixels of a side, as in models/configs.py
PROBES = (96, 48), (48, 96)  # pixels of a wide and of a tall image
NEAR, EQUAL = 0.05, 1e-3
"""Of the range of an image's values: resampling another way makes 0.01, padding, cutting or scaling 0.25 and more."""
PREPARED_BY = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


@dataclass(frozen=True)
class Vocabulary:
    """What is compared of the two models' logits: the first `shared` of `student` and `teacher` columns.

    Heads are often padded, to widths of their own (Qwen2.5: 151,936 and 152,064 for 151,665 tokens). A padding
    column is no token: it must never enter a softmax, a top-k or a knee.
    """

    shared: int
    student: int
    teacher: int | None = None

    def __str__(self) -> str:
        widths = f"the student's {self.student:,}"
        if self.teacher is not None:
            widths += f" and the teacher's {self.teacher:,}"
        return f"vocabulary: the first {self.shared:,} of {widths} logits are read"


def check_alone(model: Blueprint, who: str, *, speaks: bool = True) -> None:
    """Raises UserError, naming every problem, where a model's config, tokenizer and pictures don't fit together.

    `speaks`: conversations are written down by its own chat template. Where all data sets bring theirs, a language
    model's own is not looked at (Qwen2.5's knows no pictures).
    """
    unspoken = list(_unspoken(model)) if speaks else []
    problems = [f"{who}: {problem}" for problem in (*unspoken, *_alone(model))]
    if problems:
        raise UserError(problems, hint=TEMPLATE_HINT if unspoken else "")


def ended(model: Blueprint, who: str) -> Blueprint:
    """The model, its answers ending with the token that its chat template ends them with, if need be with a note.

    Where the template writes none it is the tokenizer's end token. Of the other ids that its files name, those
    that are no special token stay only if the template writes them there: a word may not cut an answer.
    """
    words, written = model.processor.tokenizer, after_answer(model.processor)
    end = end_of(words, written)
    source = "tokenizer" if end is None else "chat template"
    end = words.eos_token_id if end is None else end
    known = {*special(words).values(), *written}
    kept = [token for token in model.ends if token in known]
    ends = tuple(kept if end is None or end in kept else [*kept, end])
    if ends == model.ends:
        return model
    said, wanted, here = (_named(words, ids) for ids in (model.ends, [end], ends))
    note = f"{who}: its generation_config ends an answer with {said}, its {source} with {wanted}: here {here} ends one"
    return replace(model, ends=ends, notes=(*model.notes, *([note] if model.ends else ())))


def _named(words: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return " or ".join(f"{words.convert_ids_to_tokens(id)} ({id})" for id in ids)


def agree(student: Blueprint, teacher: Blueprint | None, terms: Iterable[Term] = ()) -> Vocabulary:
    """The vocabulary that both models share: every token of the student's tokenizer.

    Raises UserError, naming every pair that differs and what to do about it, where the student's visual features
    can't pass through the teacher's projector, the teacher sees pictures otherwise, or the teacher's tokenizer
    does not map all the student's ids to the same tokens. Tokens that the teacher has beyond them are never met.
    `terms`: some that compare features, or pass the student's to the teacher, need both of one layer.
    """
    shared, width = len(student.processor.tokenizer), student.config.text_config.vocab_size
    if teacher is None:
        return Vocabulary(shared, width)
    faults = [*_seen_otherwise(student, teacher), *_read_otherwise(student, teacher)]
    if (differs := _layers(student, teacher)) and (needing := [t.name for t in terms if _of_features(t)]):
        faults.append((f"{differs}: {', '.join(needing)} can't compare the two", LAYER_HINT))
    if faults:
        problems, hints = zip(*faults, strict=True)
        raise UserError(problems, hint="; ".join(dict.fromkeys(hints)))
    return Vocabulary(shared, width, teacher.config.text_config.vocab_size)


def noted(student: Blueprint, teacher: Blueprint | None) -> list[str]:
    """What differs between two models that agree, and is looked at by nothing that can't bear it: both values of each."""
    if teacher is None:
        return []
    apart, settings = _prepared_otherwise(student, teacher)
    pictures = f"teacher: images are prepared nearly alike ({apart:.1%} apart): {settings}" if apart else None
    return [note for note in (_layers(student, teacher), pictures) if note]


def positions(
    data: str, stages: Iterable[Stage], student: LlavaConfig, teacher: LlavaConfig | None
) -> dict[str, int]:
    """By model that reads a data set, the positions that its language model was made for, where its config says so."""
    taught = any(stage.needs_teacher for stage in stages if stage.data == data)
    models = {"student": student, "teacher": teacher if taught else None}
    told = {who: positions_of(config.text_config) for who, config in models.items() if config is not None}
    return {who: most for who, most in told.items() if most}


QUESTION = "What?"
TEMPLATE_HINT = (
    "a student's data sets can bring a `template` each; a checkpoint's own belongs into its folder (Jinja), as "
    "chat_template.jinja"
)
TOWERS_HINT = (
    "the switch feeds the student's visual features to the teacher's projector: give the student a tower of the "
    "teacher's build (student.vision)"
)
SELECT_HINT = "let both keep or both drop the first feature (student.feature_select)"
PROJECTOR_HINT = "give the student the teacher's kind of projector (student.projector)"
LAYER_HINT = "read both towers at one layer (student.feature_layer)"
PICTURES_HINT = (
    "both models are shown the same images: prepare them as the teacher's are (student.image_processor=..., the teacher's "
    "checkpoint)"
)
WORDS_HINT = "give the student the teacher's tokenizer (student.tokenizer), or a language model of its family"


def _seen_otherwise(student: Blueprint, teacher: Blueprint) -> Iterator[tuple[str, str]]:
    """(problem, hint) of each property in which the models' sight differs.

    Grids are read row by row in every tower known here, so that equal grids and selections are equal orders.
    """
    for what, read, hint in (
        ("vision width", lambda m: _vision(m).hidden_size, TOWERS_HINT),
        ("image size", lambda m: _vision(m).image_size, TOWERS_HINT),
        ("patch grid", lambda m: f"{_grid(m)} x {_grid(m)}", TOWERS_HINT),
        ("feature count", lambda m: features_of(m.config), SELECT_HINT),
        ("image token count", lambda m: m.image_tokens, PROJECTOR_HINT),
        ("picture normalisation (mean, std)", _normalisation, PICTURES_HINT),
    ):
        ours, theirs = read(student), read(teacher)
        if ours != theirs:
            yield f"teacher: {what} is {theirs}, the student's is {ours}", hint
    if _normalisation(student) == _normalisation(teacher):
        apart, settings = _prepared_otherwise(student, teacher)
        if apart > NEAR:
            yield f"teacher: images are prepared otherwise ({apart:.0%} apart): {settings}", PICTURES_HINT


def _prepared_otherwise(student: Blueprint, teacher: Blueprint) -> tuple[float, str]:
    """How far the same images lie apart when either has prepared them, as a share of their range, and what differs.

    0 where their sizes differ, which is told elsewhere.
    """
    ours, theirs = (_pixels(model) for model in (student, teacher))
    apart = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else 0.0
    apart /= (ours.max() - ours.min()).item() or 1.0
    if apart < EQUAL:
        return 0.0, ""
    theirs_told, ours_told = (_settings(model) for model in (teacher, student))
    told = [
        f"{name} is {theirs_told[name]}, the student's is {ours_told[name]}"
        for name in ours_told
        if theirs_told[name] != ours_told[name]
    ]
    return apart, "; ".join(told)


def _settings(model: Blueprint) -> dict[str, str]:
    pictures = model.processor.image_processor
    told = {"kind": type(pictures).__name__} | {name: getattr(pictures, name, None) for name in PREPARED_BY}
    told |= {name: _sides(told[name]) for name in ("size", "crop_size") if told[name]}
    return {name: str(value) for name, value in told.items()}


def _sides(size: Mapping[str, int | None]) -> dict[str, int]:
    return {name: side for name, side in dict(size).items() if side is not None}


def _layers(student: Blueprint, teacher: Blueprint) -> str | None:
    ours, theirs = student.config.vision_feature_layer, teacher.config.vision_feature_layer
    return None if ours == theirs else f"teacher: feature layer is {theirs}, the student's is {ours}"


def _of_features(term: Term) -> bool:
    """Whether a term compares towers' features, or passes the student's through the teacher's projector."""
    kinds = [kind for _, kind in registry.signature("loss", term.loss).reads]
    return "switch" in term.paths or "features" in kinds


def positions_of(reader: PretrainedConfig) -> int | None:
    """Of a language model; where its rotary positions are stretched, the stretched ones. None where it doesn't say."""
    most, rope = (
        getattr(reader, "max_position_embeddings", None),
        getattr(reader, "rope_parameters", None) or {},
    )
    made_for, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(most, int(made_for * factor)) if most and made_for and factor else most


def _read_otherwise(student: Blueprint, teacher: Blueprint) -> Iterator[tuple[str, str]]:
    """(problem, hint) where the teacher does not know the student's tokens by the same ids."""
    ours, theirs = _tokens(student), _tokens(teacher)
    differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if differing:
        i = differing[0]
        told = f"id {i} is {theirs[i]!r}, the student's is {ours[i]!r} ({len(differing)} ids differ)"
    elif len(theirs) < len(ours):
        lacking = ours[len(theirs)]
        told = f"{len(theirs)} tokens, the student's has {len(ours)}, {lacking!r} the first that the teacher lacks"
    else:
        return
    yield f"teacher: vocabulary: {told}", WORDS_HINT


def _unspoken(model: Blueprint) -> Iterator[str]:
    """What keeps a model from being asked by its own chat template."""
    if not model.processor.chat_template:
        yield "no chat template, in its processor or its tokenizer, so that a question can't be written down"
        return
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    try:
        told = model.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    except (TemplateError, TypeError):  # a text model's adds words to a list
        told = ""
    if told.count(IMAGE) != 1 or "'type'" in told:
        yield f"the chat template writes no {IMAGE} where a picture is shown: it is a text model's"
    elif QUESTION not in told:
        yield "the chat template leaves questions out: it only writes captions down, as after a first stage"


def _alone(model: Blueprint) -> Iterator[str]:
    tokenizer, vision, text = model.processor.tokenizer, _vision(model), model.config.text_config
    if not tokenizer.is_fast:  # which characters a token stands for is asked of it
        yield "the tokenizer has no fast form (a tokenizer.json, which AutoTokenizer would write)"
    if tokenizer.pad_token_id is None:
        yield "the tokenizer has no padding token"
    if len(tokenizer) > text.vocab_size:
        yield f"the tokenizer has {len(tokenizer)} tokens, the language model only {text.vocab_size}"
    if (image := tokenizer.convert_tokens_to_ids(IMAGE)) != model.config.image_token_id:
        yield f"{IMAGE} is token {image} of the tokenizer, the config says {model.config.image_token_id}"
    layer, layers = model.config.vision_feature_layer, vision.num_hidden_layers
    if not isinstance(layer, int) or not -layers <= layer <= -1:
        yield f"feature_layer is counted from the end, -1 to -{layers}, got {layer}"
    try:
        with explained("the image processor can't prepare a picture"):
            size, tokens = _prepared(model)
    except UserError as error:
        yield from error.problems
        return
    if size != (vision.image_size, vision.image_size):
        yield f"the image processor makes pictures of {size}, the vision tower takes {vision.image_size} x {vision.image_size}"
    elif tokens != model.image_tokens:
        yield f"the processor puts {tokens} image tokens into the text, the model makes {model.image_tokens}"
    if getattr(model.config, "projector_pooling", 1) > 1 and (fault := _ungridded(model)):
        yield fault


def _ungridded(model: Blueprint) -> str | None:
    """Why a pooling projector can't lay out the features, or None."""
    side, features = _grid(model), features_of(model.config)
    pooling = model.config.projector_pooling
    if features != side**2:
        return (
            f"ldpnetv2 needs the whole grid of {side} x {side} features, got {features}: feature_select should "
            "drop CLIP's class token (default) and nothing of SigLIP (full)"
        )
    return f"ldpnetv2 needs a grid with a side divisible by {pooling}, got {side}" if side % pooling else None


def _vision(model: Blueprint):
    return model.config.vision_config


def _grid(model: Blueprint) -> int:
    """Patches on a side."""
    return _vision(model).image_size // _vision(model).patch_size


def _prepared(model: Blueprint) -> tuple[tuple[int, int], int]:
    """(height, width) of what the image processor makes of any picture, and the image tokens counted for it.

    Raises UserError for a processor that can't, or that would make pictures of a size that no tower takes.
    """
    processor, preparer = model.processor, model.processor.image_processor
    for size in (preparer.size, getattr(preparer, "crop_size", None)):
        if size and not all(1 <= side <= LARGEST for side in _sides(size).values()):
            raise UserError(f"the image processor makes pictures of {_sides(size)}, {LARGEST} is the most")
    pixels = _pixels(model)
    if not pixels.isfinite().all():
        mean, std = _normalisation(model)
        raise UserError(f"the image processor makes values that are not finite (mean {mean}, std {std})")
    told = processor(images=Image.new("RGB", PROBES[0]), text=processor.image_token)["input_ids"][0]
    return tuple(pixels.shape[-2:]), list(told).count(processor.tokenizer.convert_tokens_to_ids(IMAGE))


def _pixels(model: Blueprint) -> Tensor:
    """A wide and a tall image as the model's image processor prepares them, [2, 3, H, W].

    Their colours rise evenly from side to side, so that each place has its own: what is padded, cut or squashed shows,
    how it is resampled hardly does.
    """
    images = []
    for width, height in PROBES:
        across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        images.append(Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8)))
    with np.errstate(all="ignore"):  # what comes of a deviation of 0 is looked at
        return prepared(model.processor.image_processor, images)


def _normalisation(model: Blueprint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pictures = model.processor.image_processor
    return tuple(pictures.image_mean or ()), tuple(pictures.image_std or ())


def _tokens(model: Blueprint) -> list[str]:
    tokenizer = model.processor.tokenizer
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
