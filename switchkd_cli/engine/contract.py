"""What a teacher and a student must share for the switch and for logits to be compared."""

from switchkd_cli.engine.models.llava import Llava
from switchkd_cli.errors import UserError


def shared_vocabulary(student: Llava, teacher: Llava) -> int:
    """The number n of leading ids that both tokenizers map to the same tokens.

    Logits of both models are cut to n columns: heads are often padded to different widths, and a padding
    row must never enter a loss. Raises UserError, naming every pair that differs, where the student's visual
    features cannot pass through the teacher's projector or the tokenizers disagree.
    """
    problems = [
        f"teacher: {what} is {theirs}, the student's is {ours}"
        for what, ours, theirs in (
            ("vision width", _width(student), _width(teacher)),
            ("image token count", student.image_tokens, teacher.image_tokens),
            ("image size", _vision(student).image_size, _vision(teacher).image_size),
        )
        if ours != theirs
    ]
    ours, theirs = _tokens(student), _tokens(teacher)
    differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if differing:
        i = differing[0]
        problems.append(f"teacher: vocabulary: id {i} is {theirs[i]!r}, the student's is {ours[i]!r}")
    elif len(ours) != len(theirs):
        problems.append(f"teacher: vocabulary: {len(theirs)} tokens, the student's has {len(ours)}")
    if problems:
        raise UserError(
            problems,
            hint="the switch feeds the student's visual features to the teacher: choose models of one build",
        )
    return len(ours)


def _vision(model: Llava):
    return model.model.config.vision_config


def _width(model: Llava) -> int:
    return _vision(model).hidden_size


def _tokens(model: Llava) -> list[str]:
    tokenizer = model.processor.tokenizer
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
