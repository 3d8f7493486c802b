"""Plain data classes for the estimate of what a run needs: the engine computes them, the terminal prints them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field

from switchkd_cli.errors import UserError
from switchkd_cli.recipe.problems import fitted
from switchkd_cli.recipe.schema import Strict

GIB = 2**30
UNKNOWN = "unknown, download it first"


class Machine(Strict):
    """What a plan is made for: `gpus` in machines of `gpus_per_node`. docs/plan.md gives each default's source.

    The defaults are for bf16: H100 SXM, dense, and the paper's ZeRO-2 (it doesn't name its hardware). Gbit/s count one
    direction.
    """

    gpus: int = Field(8, ge=1)
    memory: float = Field(80.0, gt=0)
    """Of one GPU, GiB."""
    tflops: float = Field(989.0, gt=0)
    """One GPU's peak in TFLOP/s at the recipe's precision."""
    zero: int = Field(2, ge=0, le=3)
    """DeepSpeed's ZeRO stage (0: none, gradients are added up by DDP)."""
    utilisation: float = Field(0.35, gt=0, le=1)
    """The share of the peak that a run reaches."""
    launcher: str = "deepspeed"
    """What shards the training: DeepSpeed, or FSDP2 (`fsdp`); the recipe's."""
    offload: str = "none"
    """What DeepSpeed keeps in the machine's memory instead of the GPUs'; the recipe's."""
    gpus_per_node: int = Field(8, ge=1)
    intra_gbps: float = Field(3600.0, gt=0)
    """Between GPUs of one machine, Gbit/s of each GPU."""
    inter_gbps: float = Field(3200.0, gt=0)
    """Between machines, Gbit/s of each machine."""
    overlap: float = Field(0.5, ge=0, le=1)
    """The share of the operations' time in which communication can pass at the same time, where it is sent meanwhile."""
    decode_images_per_s: float = Field(900.0, gt=0)
    """Images that the data workers of one GPU decode and prepare in a second."""
    image_kb: float = Field(150.0, gt=0)
    """The mean image file, kB."""
    disk_gbps: float = Field(16.0, gt=0)
    """Of the storage that all machines share, Gbit/s."""
    answers_per_s: float = Field(50.0, gt=0)
    """Answers in a second of the one process that scores."""
    mtbf_hours: float = Field(50_000.0, gt=0)
    """Mean time between failures of one GPU, with its share of everything else that ends a run."""
    restart_minutes: float = Field(10.0, ge=0)
    """From a failure until the run continues."""
    price: float = Field(3.0, ge=0)
    """Of a GPU hour, dollars."""

    @property
    def sharding(self) -> int:
        """What is sharded, as ZeRO's stages count it: FSDP2 shards what ZeRO 3 does."""
        return 3 if self.launcher == "fsdp" else self.zero

    def __str__(self) -> str:
        count = "1 GPU" if self.gpus == 1 else f"{self.gpus} GPUs"
        offload = f" with offload of {self.offload}" if self.offload != "none" else ""
        zero = f", DeepSpeed ZeRO-{self.zero}{offload}" if self.zero else ""
        zero = ", FSDP2" if self.launcher == "fsdp" else zero
        speed = f"{self.utilisation:.0%} of a peak of {self.tflops:g} TFLOP/s"
        return f"{count} of {self.memory:g} GiB, {speed}{zero}"


# one H100, float32 without tensor cores; recipes in fp32 are the playground's, whose answers are a word or two
FP32 = {"gpus": 1, "tflops": 67.0, "zero": 0, "answers_per_s": 600.0}


def planned_machine(text: str | None, precision: str, *, gpus: int | None = None, **recipe: Any) -> Machine:
    """Return the machine to plan for: the default one of a recipe's precision, changed by `gpus=4,memory=40`.

    `recipe`: its `zero`, `offload` and `launcher`. Raises UserError naming every wrong change.
    """
    recipe["gpus"] = gpus or None
    values: dict[str, Any] = dict(FP32) if precision == "fp32" else {}
    values |= {key: value for key, value in recipe.items() if value is not None}
    pairs = [word.partition("=") for word in (text or "").split(",") if word]
    changes = {key.strip(): value.strip() for key, _, value in pairs}
    machine, wrong = fitted(Machine, values | changes)
    problems = [f"--machine: {path[0]}: {problem}" for path, problem in wrong]
    for key, name in (("offload", "deepspeed.offload"), ("launcher", "launcher")):
        if key in changes:
            problems.append(f"--machine: {key}: a recipe sets it ({name})")
    if machine is None or problems:
        keys = "docs/plan.md has all keys"
        raise UserError(problems, hint=f"--machine gpus=8,memory=80,tflops=989,utilisation=0.35,zero=2 ({keys})")
    return machine


@dataclass(frozen=True)
class PairFact:
    """A property of student and teacher, with both values, and whether they may be so.

    `verdict`: yes; else what a pair with such a difference needs: an adapter between the towers' features, terms that
    compare answers by their bytes, or neither would help. `difference` is empty where there is none.
    """

    name: str
    student: str
    teacher: str
    verdict: Literal["yes", "adapter", "bytes", "impossible"] = "yes"
    difference: str = ""
    hint: str = ""

    @classmethod
    def of(cls, name: str, student: object, teacher: object, *unlike: Any) -> Self:
        """Compare two values. `unlike`: the verdict if they differ, and a hint."""
        if student == teacher:
            return cls(name, str(student), str(teacher))
        verdict, hint = unlike
        told = f"teacher: {name} is {teacher}, the student's is {student}"
        return cls(name, str(student), str(teacher), verdict, told, hint)


class Misfit(UserError):
    """A teacher and a student don't fit each other; `facts` are all that was compared."""

    facts: tuple[PairFact, ...] = ()


@dataclass(frozen=True)
class ModelEstimate:
    """One model: where it is known from, its parameters by part (none: unknown), and tokens of an image."""

    who: str
    source: str
    parameters: Mapping[str, int] = field(default_factory=dict)
    image_tokens: int | None = None


class TimeTerm(NamedTuple):
    """Hours that a part of training `takes`, and those of them that it `adds`: the rest passes during other parts."""

    takes: float
    adds: float


@dataclass
class StageEstimate:
    """One stage; None is unknown. `data` names what it trains on, of `rows` examples; `lengths` are the tokens of the mean
    example by part, and of the longest, known from `source`. `memory` is bytes of one GPU by component; `flops` are a
    step's, over all GPUs, `sent` the bytes that one GPU sends to others in a step, `time` the terms of the hours.

    `largest_micro_batch` is the largest that fits (None: not even 1), `padding` a share of a step's tokens,
    `saved_bytes` the size of the saved student; `notes` say what the recipe should change, and what is written to disk.
    """

    name: str
    key: str
    reused: bool
    data: str
    batch: int
    gpus: int
    source: str = UNKNOWN
    rows: int | None = None
    lengths: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    trained: int | None = None
    saved_bytes: float | None = None
    micro_batch: int | None = None
    largest_micro_batch: int | None = None
    memory: Mapping[str, float] = field(default_factory=dict)
    padding: float | None = None
    flops: float | None = None
    sent: float = 0.0
    time: Mapping[str, TimeTerm] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def accumulation(self) -> int | None:
        return self.batch // (self.gpus * self.micro_batch) if self.micro_batch else None

    @property
    def hours(self) -> float | None:
        return sum(term.adds for term in self.time.values()) if self.time else None

    @property
    def bound(self) -> str:
        """The term that adds most."""
        return max(self.time, key=lambda name: self.time[name].adds, default="")


@dataclass(frozen=True)
class Download:
    """Something that is not on this machine: its size in bytes (None: unknown) and where it goes."""

    name: str
    size: float | None
    where: str
    note: str = ""


@dataclass
class RunEstimate:
    """What one run needs; the notes say what this rests on and what the recipe should change.

    `pair` compares student and teacher, if both are on this machine. `looks` are lines about the rows of each data set
    that is on this machine. `scoring`: hours in which one process answers the benchmarks' questions
    (None: unknown how many), by the key of whose answers they are.
    """

    machine: Machine
    models: list[ModelEstimate] = field(default_factory=list)
    pair: tuple[PairFact, ...] = ()
    vocabulary: str = "vocabulary: unknown until both models are here"
    stages: list[StageEstimate] = field(default_factory=list)
    downloads: list[Download] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    looks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scoring: Mapping[str, float | None] = field(default_factory=dict)
