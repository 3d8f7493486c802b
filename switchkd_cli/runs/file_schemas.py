"""What a run's files must say to be shown: they may have been edited by hand, or come from somebody else.

Only what is read again is looked at; other fields pass.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UNPRINTABLE, UserError


def _one_line(text: str) -> str:
    if UNPRINTABLE.search(text):
        raise ValueError("must be one line without control characters")
    return text


def _benchmark(task: str) -> str:
    if task not in BENCHMARKS:
        raise ValueError("not a benchmark")
    return task


Line = Annotated[str, Field(strict=True), AfterValidator(_one_line)]
Task = Annotated[str, AfterValidator(_benchmark)]
Real = Annotated[float, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=0)]


class Open(BaseModel):
    """Takes any other field."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Info(Open):
    """run.json, see occupy.py."""

    status: Line = ""
    recipe: Line = ""
    row: Line = ""
    title: Line = ""
    seed: Whole = 0
    paper: dict[Line, Real] | None = None
    key: Line = ""
    command: list[str] = []
    versions: dict[Line, Line] | None = None
    started: Line = ""
    ended: Line = ""
    seconds: Real | None = None
    threads: Whole | None = None


class Score(Open):
    score: Annotated[float, Field(strict=True, ge=0, le=100)]
    items: Whole
    metric: Line = ""
    unreadable: Whole = 0
    empty: Whole = 0
    at_limit: Whole = 0
    too_long: Whole = 0
    example: str | None = None


class Fidelity(Open):
    agreement: Real
    kl: Real
    positions: Whole
    data: Line = ""


class Results(Open):
    """results.json, see engine/evaluate.py."""

    world: Line
    split: Line
    sets_key: Line
    scores: Annotated[dict[Task, Score], Field(min_length=1)]
    versions: dict[Line, Line | None] | None = None
    fidelity: Fidelity | None = None


class Teacher(Open):
    """The teacher's and the baselines' results, see `report.baselines.judged`."""

    teacher: Results | None = None
    majority: Results | None = None
    blind: Results | None = None
    not_beaten: dict[Task, list[Line]] = {}


class Trained(Open):
    """One stage of a resolved recipe, as tables tell of it."""

    name: Line
    batch: Whole
    steps: Whole | None = None
    epochs: Real | None = None


class Resolved(Open):
    """recipe.yaml of a run."""

    stages: Annotated[list[Trained], Field(min_length=1)]
    stand_ins: dict[Line, Line] | None = None


class Answer(Open):
    """A line of an answers file."""

    doc_id: int | Line
    score: Real
    image: Line | None = None
    answer: str = ""
    target: Any = None


def check(kind: type[BaseModel], data: Any, file: object, hint: str = "") -> Any:
    """The data itself. Raises UserError, naming the file and every field, where it is not of its kind."""
    try:
        TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        told = error.errors(include_url=False, include_input=False)
        problems = [f"{file}: {'.'.join(map(str, e['loc'])) or 'all of it'}: {e['msg']}" for e in told[:10]]
        raise UserError(problems, hint=hint) from None
    return data
