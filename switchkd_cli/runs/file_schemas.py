"""Schemas of a run's files. They are checked when they are read: somebody may have edited them.

Only fields that are read again are checked; others pass.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.errors import UNPRINTABLE, UserError


def _one_line(text: str) -> str:
    if UNPRINTABLE.search(text):
        raise ValueError("must be one line without control characters")
    return text


OneLine = Annotated[str, Field(strict=True), AfterValidator(_one_line)]
Task = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$", max_length=200)]  # also names a file of answers
Real = Annotated[float, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Points = Annotated[float, Field(strict=True, ge=0, le=100)]


class Lenient(BaseModel):
    """Allows any other field."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Info(Lenient):
    """run.json, see claim.py."""

    status: OneLine = ""
    recipe: OneLine = ""
    row: OneLine = ""
    title: OneLine = ""
    seed: Whole = 0
    paper: dict[OneLine, Real] | None = None
    key: OneLine = ""
    command: list[str] = []
    versions: dict[OneLine, OneLine] | None = None
    started: OneLine = ""
    ended: OneLine = ""
    seconds: Real | None = None
    threads: Whole | None = None
    lengths: dict[OneLine, dict[Annotated[int, Field(gt=0)], Whole]] = {}


class Score(Lenient):
    score: Real
    items: Whole
    higher_is_better: bool = True
    yes: Whole = 0
    no: Whole = 0
    accuracy: Points = 0.0
    metric: OneLine = ""
    unreadable: Whole = 0
    empty: Whole = 0
    at_limit: Whole = 0
    too_long: Whole = 0
    example: str | None = None


def _points(scores: dict[str, Score]) -> dict[str, Score]:
    """Scores with an entry in benchmarks.yaml are points; those of other tasks are on lmms-eval's own scale."""
    if wrong := [task for task, of in scores.items() if task in BENCHMARKS and not 0 <= of.score <= 100]:
        raise ValueError(f"{wrong[0]}.score: must be 0 to 100")
    return scores


class Measured(Lenient):
    """What was measured on examples of a data set."""

    positions: Whole
    data: OneLine = ""
    held_out: bool = False


class Fidelity(Measured):
    agreement: Real
    kl: Real
    error_consistency: Real | None = None


class EyesOrReader(Measured):
    accuracy: dict[OneLine, Real]
    gap: Real
    eyes: Real
    reader: Real
    interaction: Real
    grounding: dict[OneLine, Real | None] = {}


class Results(Lenient):
    """results.json, see engine/evaluation/score_model.py."""

    world: OneLine
    split: OneLine
    sets_key: OneLine
    reader: OneLine = ""
    engine: OneLine = ""
    bits: Whole | None = None
    bytes: Whole = 0
    full_bytes: Whole = 0
    scores: Annotated[dict[Task, Score], Field(min_length=1), AfterValidator(_points)]
    versions: dict[OneLine, OneLine | None] | None = None
    fidelity: Fidelity | None = None
    eyes_or_reader: EyesOrReader | None = None


class Teacher(Lenient):
    """The teacher's and the baselines' results, see `report.stats.baselines.with_verdict`."""

    teacher: Results | None = None
    majority: Results | None = None
    blind: Results | None = None
    not_beaten: dict[Task, list[OneLine]] = {}


class Trained(Lenient):
    """One stage of a resolved recipe; the fields that tables show."""

    name: OneLine
    batch: Whole
    steps: Whole | None = None
    epochs: Real | None = None


class Resolved(Lenient):
    """recipe.yaml of a run."""

    stages: Annotated[list[Trained], Field(min_length=1)]
    stand_ins: dict[OneLine, OneLine] | None = None


class Answer(Lenient):
    """A line of an answers file."""

    doc_id: int | OneLine
    score: Real | None  # None: its metric has no score of single items
    category: Any = None
    image: OneLine | None = None
    answer: str = ""
    target: Any = None
    faults: list[OneLine] = []


def check(kind: type[BaseModel], data: Any, file: object, hint: str = "") -> Any:
    """Return the data unchanged. Raises UserError, naming the file and each wrong field, when it breaks the schema."""
    try:
        kind.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        problems = [f"{file}: {'.'.join(map(str, e['loc'])) or 'all of it'}: {e['msg']}" for e in errors[:10]]
        raise UserError(problems, hint=hint) from None
    return data
