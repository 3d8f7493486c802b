"""What a recipe may say. Every model is frozen and refuses unknown keys; check.py compares the fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"  # no dots: names are steps of dotted paths and names of folders

Name = Annotated[str, Field(pattern=NAME)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Positive = Annotated[float, Field(strict=True, gt=0)]
NotNegative = Annotated[float, Field(strict=True, ge=0)]
Part = Literal["vision", "projector", "language"]
LogitsPath = Literal["student", "teacher", "switch"]
Recomputed = Literal["vision", "student", "switch"]
RECOMPUTED = get_args(Recomputed)

LOWER = ("loss", "student_ce", "kl/student", "switch_gap")  # figures that a best checkpoint may be chosen by,
HIGHER = ("agreement/student", "agreement/switch")  # beside each term's own loss/<term>

TAG = "is "  # opens the tags of unions, so that they can be told from fields in pydantic's error locations


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Fresh(Closed):
    """A part with random weights: `fresh` holds the keys of its transformers configuration."""

    fresh: dict[str, Any]


def _part_form(value: Any) -> str:
    return TAG + ("fresh" if isinstance(value, dict | Fresh) else "named")


PartSource = Annotated[
    Annotated[Text, Tag(TAG + "named")] | Annotated[Fresh, Tag(TAG + "fresh")], Discriminator(_part_form)
]


class Parts(Closed):
    """A model put together from a vision tower and a language model, with a fresh projector between them.

    A part is a folder, a hub id, `playground:NAME`, or `{fresh: {...}}`. `image_processor` names the tower or whole model
    whose images are prepared alike (none: the student's own tower). `feature_layer` and `feature_select`
    are transformers' `vision_feature_layer` and `vision_feature_select_strategy`. `allow_pickle` lets parts that
    have no safetensors be read from pytorch_model.bin (tensors only).
    """

    family: str
    vision: PartSource
    language: PartSource
    projector: Literal["mlp2x_gelu", "ldpnetv2"] = "mlp2x_gelu"
    tokenizer: Text | None = None
    image_processor: Annotated[Text | None, Field(exclude_if=lambda value: value is None)] = None
    feature_layer: Annotated[int, Field(strict=True)] = -2
    feature_select: Literal["full", "default"] = "full"
    allow_pickle: bool = False


class Checkpoint(Closed):
    """A whole model: a folder, a hub id, or `playground:NAME`; a Hugging Face LLaVA or a TinyLLaVA checkpoint."""

    family: str
    checkpoint: Text
    allow_pickle: bool = False


def _model_form(value: Any) -> str:
    whole = "checkpoint" in value if isinstance(value, dict) else isinstance(value, Checkpoint)
    return TAG + ("checkpoint" if whole else "parts")


Model = Annotated[
    Annotated[Parts, Tag(TAG + "parts")] | Annotated[Checkpoint, Tag(TAG + "checkpoint")],
    Discriminator(_model_form),
]


class DataSet(Closed):
    """A registered source and the keyword arguments it is called with.

    `template` writes its conversations down (none: the model's own chat template), `max_length` cuts their tokens,
    image tokens included. Past `max_faults`, a share of its rows, unusable rows stop the run. `images_by` says how it is
    known whether the images are those that a finished run was trained on: by their bytes; by their sizes and times of
    change, which reads none of them; or by their names alone, which does not even look whether they are there.
    """

    source: str
    parameters: dict[str, Any] = {}
    template: str | None = None
    max_length: Count | None = None
    max_faults: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.01
    images_by: Literal["content", "size_and_time", "names"] = "content"


def _layers_told(value: Any) -> Any:
    """`true` is all of them, `false` none."""
    if not isinstance(value, bool | list | tuple):
        listed = f"must be true, false or a list of {', '.join(RECOMPUTED)}"
        raise PydanticCustomError("layers_type", listed)
    return (RECOMPUTED if value else ()) if isinstance(value, bool) else value


class Term(Closed):
    """One summand of a stage's objective: weight · loss(to, of) on the chosen positions."""

    name: Name
    loss: str
    of: LogitsPath = "student"
    to: Literal["labels", "teacher", "student", "switch"] = "labels"
    on: Literal["answer", "text", "image", "all"] = "answer"
    weight: NotNegative = 1.0
    parameters: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_loss(cls, value: Any) -> Any:
        return {"name": value["loss"], **value} if isinstance(value, dict) and "loss" in value else value

    @property
    def paths(self) -> frozenset[str]:
        """The logits paths that this term reads."""
        return frozenset({self.of, self.to} - {"labels"})


class Stage(Closed):
    """One phase of training. `batch` counts rows (pictures) per optimiser step over all processes.

    `group_by: modality_length` makes steps of pictured rows only or of text only, and micro-batches of rows of like
    length. `workers` prepare data beside the training (none given: as many as the data and the machine want); no
    result depends on them. `activation_checkpointing` (true, false, or some of vision, student, switch) computes the
    layers of V_S, of L_S and of L_T in the switch pass again in the backward pass and keeps only their inputs: less
    memory, a forward pass of them more, the same gradient. `teacher_states` says how the teacher's last states are had:
    in the student's batches, row by row without padding, or so and kept on disk for whoever asks again. The last two
    give the same numbers to the bit; the first differs from them by rounding. A step whose loss or gradient is no number
    ends the run, or with `not_finite: skip` leaves the weights as they are (ten such steps in a row end it all the same).
    """

    name: Name
    data: str
    train: Annotated[tuple[Part, ...], Field(min_length=1)]
    lr: Positive
    lr_scale: dict[Part, NotNegative] = {}
    batch: Count
    micro_batch: Count | None = None
    group_by: Literal["modality_length"] | None = None
    workers: Annotated[int, Field(strict=True, ge=0, le=1024)] | None = None
    activation_checkpointing: Annotated[tuple[Recomputed, ...], BeforeValidator(_layers_told)] = ()
    steps: Count | None = None
    epochs: Annotated[float, Field(strict=True, gt=0, le=10**6)] | None = None
    warmup: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NotNegative = 0.0
    grad_clip: Positive | None = 1.0
    not_finite: Annotated[Literal["stop", "skip"], Field(exclude_if=lambda value: value == "stop")] = (
        "stop"  # left out of keys where it is the default: what was trained before it existed is found again
    )
    teacher_states: Annotated[
        Literal["batched", "by_row", "cached"], Field(exclude_if=lambda value: value == "batched")
    ] = "batched"
    objective: Annotated[tuple[Term, ...], Field(min_length=1)]

    @property
    def paths(self) -> frozenset[str]:
        """The logits paths that a step of this stage computes."""
        return frozenset().union(*(term.paths for term in self.objective))

    @property
    def needs_teacher(self) -> bool:
        return bool(self.paths & {"teacher", "switch"})


class DeepSpeed(Closed):
    """How DeepSpeed shares the training out among the processes.

    `zero` is ZeRO's stage: 1 shares out what the optimiser keeps, 2 gradients too, 3 the student's weights too; 0 is
    torch alone. `offload` keeps the optimiser's share, or the parameters' too, in the machine's memory.
    """

    zero: Annotated[int, Field(strict=True, ge=0, le=3)] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"


class Evaluation(Closed):
    """Which benchmarks a finished model is scored on.

    `items` is per benchmark; none means all there are. `seed` draws the playground's questions; it is the same
    for every seed of a run, so that runs can be paired item by item.
    """

    world: Literal["playground", "hub"] = "playground"
    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]
    split: Literal["train", "validation", "test", "hard"] = "test"
    items: Count | None = None
    seed: Seed = 0
    batch: Count = 64


class Saving(Closed):
    """How often a training writes a checkpoint, and which it keeps: the newest `keep`, and the best.

    Every so many steps, or minutes, or whichever comes first; none of both: only when it is asked to stop. `best` names
    a figure of metrics.jsonl, averaged over the steps between two checkpoints: they are training figures, not a
    validation. No result depends on any of this.
    """

    every_steps: Count | None = None
    every_minutes: Positive | None = 15.0
    keep: Count = 2
    best: Text | None = None


class Row(Closed):
    """A row of a table: a patch on the recipe, and the numbers the paper prints for it."""

    title: str = ""
    paper: dict[str, Annotated[float, Field(strict=True)]] = {}
    drop: tuple[str, ...] = ()
    set: dict[str, Any] = {}


class Recipe(Closed):
    """A recipe, or one row of it, resolved.

    `world` and what stands in there for what (`stand_ins`) are written by `--world`; no result depends on them, nor on
    `check`, which compares the chunked objective of each stage's first step with all logits at once.
    """

    title: str
    world: Name | None = None
    stand_ins: dict[str, str] = {}
    seed: Seed = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    deepspeed: DeepSpeed = DeepSpeed()
    student: Model
    teacher: Checkpoint | None = None
    data: dict[Name, DataSet]
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    evaluation: Evaluation | None = None
    checkpoints: Saving = Saving()
    check: bool = False
    controls: tuple[str, ...] = ()
    rows: dict[Name, Row] = {}

    @property
    def arithmetic(self) -> str:
        """What weights are computed with: the numbers depend on it, not on how they are shared out.

        bf16 is torch's mixed precision over float32 weights; DeepSpeed's weights are bf16, with float32 ones behind.
        """
        return "bf16 weights" if self.precision == "bf16" and self.deepspeed.zero else self.precision

    @property
    def needs_template(self) -> bool:
        """Whether a data set that is trained on brings no template: the student's own chat template writes it down."""
        return any(self.data[stage.data].template is None for stage in self.stages)
