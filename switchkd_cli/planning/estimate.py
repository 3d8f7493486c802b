"""What a run is foretold to need: plain figures that the engine works out and the console draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from switchkd_cli.errors import UserError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What a plan is made for. `memory` is one GPU's in GiB, `tflops` its peak in TFLOP/s at the recipe's precision.

    `utilisation` is the share of the peak that a run reaches, `zero` the DeepSpeed ZeRO stage (0: none), `offload` what
    DeepSpeed keeps in the machine's memory instead of the GPUs'.
    """

    gpus: int = 8
    memory: float = 80.0
    tflops: float = 989.0
    utilisation: float = 0.35
    zero: int = 2
    offload: str = "none"

    def __str__(self) -> str:
        count = "1 GPU" if self.gpus == 1 else f"{self.gpus} GPUs"
        kept = f" with offload of {self.offload}" if self.offload != "none" else ""
        zero = f", DeepSpeed ZeRO-{self.zero}{kept}" if self.zero else ""
        speed = f"{self.utilisation:.0%} of a peak of {self.tflops:g} TFLOP/s"
        return f"{count} of {self.memory:g} GiB, {speed}{zero}"


USUAL = {
    "bf16": Machine(),  # H100 SXM, dense bf16; ZeRO-2 is the paper's; no hardware is told there
    "fp32": Machine(gpus=1, tflops=67.0, zero=0),  # one of them, float32 without tensor cores
}
"""The machine that is planned for when nobody names one, by the recipe's precision."""

SMALLEST = {"gpus": 1, "memory": 0.0, "tflops": 0.0, "utilisation": 0.0, "zero": 0}
LARGEST = {"utilisation": 1.0, "zero": 3}


def machine(
    text: str | None,
    precision: str,
    *,
    zero: int | None = None,
    offload: str = "none",
    gpus: int | None = None,
) -> Machine:
    """The usual machine, as the recipe shares its training out, with the changes of `gpus=4,memory=40`.

    Raises UserError naming every wrong one.
    """
    usual = replace(USUAL[precision], offload=offload)
    usual = replace(usual, zero=usual.zero if zero is None else zero, gpus=gpus or usual.gpus)
    kinds = {
        field.name: type(getattr(usual, field.name)) for field in fields(Machine) if field.name in SMALLEST
    }
    changes, problems = {}, []
    for word in filter(None, (text or "").split(",")):
        key, _, value = (part.strip() for part in word.partition("="))
        try:
            changes[key] = number = kinds[key](value)
            above = number > 0 and number >= SMALLEST[key] if key != "zero" else number >= 0
            if not (above and number <= LARGEST.get(key, float("inf"))):
                problems.append(f"--machine: {key}: out of range, got {value!r}")
        except KeyError:
            problems.append(f"--machine: unknown key, got {key!r}{did_you_mean(key, kinds)}")
        except ValueError:
            problems.append(f"--machine: {key}: must be a number, got {value!r}")
    if problems:
        raise UserError(problems, hint="--machine gpus=8,memory=80,tflops=989,utilisation=0.35,zero=2")
    return replace(usual, **changes)


@dataclass(frozen=True)
class ModelForecast:
    """One model's parameters by part (none: unknown), tokens of a picture, and where this is known from."""

    who: str
    name: str
    parts: Mapping[str, int]
    image_tokens: int | None
    source: str


@dataclass(frozen=True)
class DataForecast:
    """A data set: its rows, and the tokens of the mean and of the longest row that was looked at (None: unknown)."""

    name: str
    rows: int | None
    image: float | None
    prompt: float | None
    answer: float | None
    longest: int | None
    source: str


@dataclass(frozen=True)
class StageForecast:
    """One stage. `memory` is bytes of one GPU by component; `flops` are a step's, over all GPUs.

    `padding` is the share of padding among a step's tokens, `grouped` the same with `group_by: modality_length`.
    """

    name: str
    data: DataForecast
    reused: bool
    steps: int | None
    batch: int
    gpus: int
    micro: int | None
    largest: int | None
    padding: float | None
    grouped: float | None
    trained: int | None
    memory: Mapping[str, float]
    flops: float | None
    hours: float | None
    checkpoint: float | None
    key: str

    @property
    def accumulation(self) -> int | None:
        return self.batch // (self.gpus * self.micro) if self.micro else None


@dataclass(frozen=True)
class Download:
    """Something that is not on this machine: its size in bytes (None: unknown) and where it goes."""

    name: str
    size: float | None
    where: str
    note: str = ""


@dataclass(frozen=True)
class Forecast:
    """What one run needs, and what was assumed to say so."""

    machine: Machine
    models: tuple[ModelForecast, ...]
    vocabulary: str
    stages: tuple[StageForecast, ...]
    downloads: tuple[Download, ...]
    notes: tuple[str, ...]
