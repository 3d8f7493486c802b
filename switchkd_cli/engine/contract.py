"""What a model must be to be trained or asked, and what a teacher and a student must share.

All of it is seen in configs, tokenizers and image processors, so that it is known before any weight is read.
"""

from collections.abc import Iterator

from PIL import Image

from switchkd_cli.engine.batch import IMAGE
from switchkd_cli.engine.models.llava import Blueprint
from switchkd_cli.errors import UserError


def check_alone(model: Blueprint, who: str) -> None:
    """Raises UserError, naming every problem, where a model's config, tokenizer and pictures don't fit together."""
    problems = [f"{who}: {problem}" for problem in _alone(model)]
    if problems:
        raise UserError(problems)


def shared_vocabulary(student: Blueprint, teacher: Blueprint) -> int:
    """The number n of leading ids that both tokenizers map to the same tokens.

    Logits of both models are cut to n columns: heads are often padded to different widths, and a padding
    row must never enter a loss. Raises UserError, naming every pair that differs, where the student's visual
    features cannot pass through the teacher's projector, the teacher sees pictures otherwise, or the tokenizers
    disagree.
    """
    problems = [
        f"teacher: {what} is {theirs}, the student's is {ours}"
        for what, ours, theirs in (
            ("vision width", _vision(student).hidden_size, _vision(teacher).hidden_size),
            ("image token count", student.image_tokens, teacher.image_tokens),
            ("image size", _vision(student).image_size, _vision(teacher).image_size),
            ("picture normalisation (mean, std)", _normalisation(student), _normalisation(teacher)),
        )
        if ours != theirs
    ]
    ours, theirs = _tokens(student), _tokens(teacher)
    differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if differing:
        i = differing[0]
        problems.append(
            f"teacher: vocabulary: id {i} is {theirs[i]!r}, the student's is {ours[i]!r}"
            f" ({len(differing)} ids differ)"
        )
    elif len(ours) != len(theirs):
        problems.append(f"teacher: vocabulary: {len(theirs)} tokens, the student's has {len(ours)}")
    if problems:
        raise UserError(
            problems,
            hint="the switch feeds the student's visual features to the teacher: choose models of one build",
        )
    return len(ours)


def _alone(model: Blueprint) -> Iterator[str]:
    tokenizer, vision, text = model.processor.tokenizer, _vision(model), model.config.text_config
    if not model.processor.chat_template:
        yield "the tokenizer has no chat template, so a conversation can't be written down"
    if tokenizer.pad_token_id is None:
        yield "the tokenizer has no padding token"
    if len(tokenizer) > text.vocab_size:
        yield f"the tokenizer has {len(tokenizer)} tokens, the language model only {text.vocab_size}"
    if (image := tokenizer.convert_tokens_to_ids(IMAGE)) != model.config.image_token_id:
        yield f"{IMAGE} is token {image} of the tokenizer, the config says {model.config.image_token_id}"
    layer, layers = model.config.vision_feature_layer, vision.num_hidden_layers
    if not isinstance(layer, int) or not -layers <= layer <= -1:
        yield f"feature_layer is counted from the end, -1 to -{layers}, got {layer}"
    if (size := _picture_size(model)) != (vision.image_size, vision.image_size):
        yield f"the image processor makes pictures of {size}, the vision tower takes {vision.image_size} x {vision.image_size}"


def _vision(model: Blueprint):
    return model.config.vision_config


def _picture_size(model: Blueprint) -> tuple[int, int]:
    """(height, width) of what the image processor makes of any picture."""
    blank = Image.new("RGB", (40, 30))
    return tuple(model.processor.image_processor(blank, return_tensors="pt")["pixel_values"].shape[-2:])


def _normalisation(model: Blueprint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pictures = model.processor.image_processor
    return tuple(pictures.image_mean or ()), tuple(pictures.image_std or ())


def _tokens(model: Blueprint) -> list[str]:
    tokenizer = model.processor.tokenizer
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
