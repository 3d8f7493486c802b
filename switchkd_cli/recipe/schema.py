"""The fields of a recipe and their types, as frozen pydantic models that refuse unknown keys.

What one field means for another is checked in validate.py. docs/recipes.md explains the fields to users.
"""

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
Beta = Annotated[float, Field(strict=True, ge=0, lt=1)]
Part = Literal["vision", "projector", "language"]
LogitsPath = Literal["student", "teacher", "switch"]
Recomputed = Literal["vision", "student", "switch"]
RECOMPUTED = get_args(Recomputed)

# Figures that the best checkpoint may be chosen by, in addition to each term's loss/<term>: the lowest or highest is best.
LOWER = ("loss", "student_ce", "kl/student", "switch_gap")
HIGHER = ("agreement/student", "agreement/switch", "validation/agreement", "validation/exact_match")
VALIDATION = "validation/"  # begins the names of figures that are not the training's

DEFAULT_TRACKERS = ("tensorboard",)

TAG = "is "  # begins the tags of unions, to tell them from fields in the locations of pydantic's errors


def _left_out(default: Any) -> Any:
    """Leave a field with its default value out of keys, so that runs from before the field existed are found again."""
    return Field(exclude_if=lambda value: value == default)


class Strict(BaseModel):
    """A frozen model without unknown keys, NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Fresh(Strict):
    """A part with random weights; `fresh` holds the keys of its transformers configuration."""

    fresh: dict[str, Any]


def _part_form(value: Any) -> str:
    return TAG + ("fresh" if isinstance(value, dict | Fresh) else "named")


PartSource = Annotated[
    Annotated[Text, Tag(TAG + "named")] | Annotated[Fresh, Tag(TAG + "fresh")], Discriminator(_part_form)
]


class Parts(Strict):
    """A model made of a vision tower and a language model, with a fresh projector between them.

    A part is a folder, a hub id, `playground:NAME`, or `{fresh: {...}}`. `image_processor` names the tower or whole model
    whose image preparation is used (none: the student's own tower). `feature_layer` and `feature_select` are
    transformers' `vision_feature_layer` and `vision_feature_select_strategy`. With `allow_pickle`, parts without
    safetensors are read from pytorch_model.bin (tensors only).
    """

    family: str
    vision: PartSource
    language: PartSource
    projector: Literal["mlp2x_gelu", "ldpnetv2"] = "mlp2x_gelu"
    tokenizer: Text | None = None
    image_processor: Annotated[Text | None, _left_out(None)] = None
    feature_layer: Annotated[int, Field(strict=True)] = -2
    feature_select: Literal["full", "default"] = "full"
    allow_pickle: bool = False


class Checkpoint(Strict):
    """A whole model: a folder, a hub id, or `playground:NAME`; a Hugging Face LLaVA or a TinyLLaVA checkpoint."""

    family: str
    checkpoint: Text
    allow_pickle: bool = False


def _model_form(value: Any) -> str:
    whole = "checkpoint" in value if isinstance(value, dict) else isinstance(value, Checkpoint)
    return TAG + ("checkpoint" if whole else "parts")


Model = Annotated[
    Annotated[Parts, Tag(TAG + "parts")] | Annotated[Checkpoint, Tag(TAG + "checkpoint")], Discriminator(_model_form)
]


class DataSet(Strict):
    """A registered source, its arguments, and how its examples are written as tokens.

    `template` turns a conversation into text (none: the model's own chat template). `max_length` is the most tokens of an
    example, image tokens included. The run stops when more than the share `max_faults` of the examples are unusable.
    `images_by` says how images are compared with those of a finished run: by their bytes; by their sizes and times of
    change, without reading them; or by their names alone, without looking whether they exist.
    """

    source: str
    parameters: dict[str, Any] = {}
    template: str | None = None
    max_length: Count | None = None
    max_faults: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.01
    images_by: Literal["content", "size_and_time", "names"] = "content"


def _recomputed(value: Any) -> Any:
    """Return the parts that `activation_checkpointing` means: `true` is all of them, `false` none."""
    if isinstance(value, bool):
        return RECOMPUTED if value else ()
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("layers_type", f"must be true, false or a list of {', '.join(RECOMPUTED)}")
    return value


class Term(Strict):
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
        """The paths whose outputs this term reads."""
        return frozenset({self.of, self.to} - {"labels"})


class Validation(Strict):
    """Examples that a stage does not train on, and after how many steps its figures are computed on them again.

    They are the data set `data`, or a `share` of the stage's own, drawn image by image, which its training then leaves
    out. At most `rows` of them are computed: the same ones for every row of a table and every seed. With `patience` the
    stage ends after this number of validations in a row without a better `monitor`.
    """

    data: Name | None = None
    share: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    every_steps: Count
    rows: Count = 500
    patience: Count | None = None
    monitor: Text = "validation/loss"


class Stage(Strict):
    """One phase of training. `batch` is the number of examples per optimiser step, over all processes.

    `group_by: modality_length` makes steps of examples with images only or of text only, and micro-batches of examples of
    similar length. `workers` prepare data in parallel with the training (none: as many as suit data and machine); no
    result depends on their number. `activation_checkpointing` (true, false, or some of vision, student, switch) keeps only
    the inputs of the layers of V_S, of L_S, and of L_T in the switch path, and computes the layers again in the backward
    pass: less memory, one more forward pass, the same gradient.
    `schedule` is a name in registry.yaml, after a linear `warmup` (a share of the steps). `optimizer: adamw_8bit` keeps
    AdamW's moments in 8 bits; `betas` and `eps` are AdamW's (none: torch's, 0.9 and 0.999, 1e-8).
    `teacher_states` says how the teacher's hidden states are computed: in the student's batches; example by example,
    without padding; or example by example and then kept on disk for later epochs and runs. The last two give identical
    numbers; the first differs by rounding. A step with a non-finite loss or gradient ends the run; with `not_finite: skip`
    it leaves the weights unchanged (ten such steps in a row end the run too).
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
    activation_checkpointing: Annotated[tuple[Recomputed, ...], BeforeValidator(_recomputed)] = ()
    steps: Count | None = None
    epochs: Annotated[float, Field(strict=True, gt=0, le=10**6)] | None = None
    warmup: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.03
    schedule: str = "cosine"
    schedule_parameters: Annotated[dict[str, Any], _left_out({})] = {}
    optimizer: Annotated[Literal["adamw", "adamw_8bit"], _left_out("adamw")] = "adamw"
    betas: Annotated[tuple[Beta, Beta] | None, _left_out(None)] = None
    eps: Annotated[Positive | None, _left_out(None)] = None
    weight_decay: NotNegative = 0.0
    grad_clip: Positive | None = 1.0
    not_finite: Annotated[Literal["stop", "skip"], _left_out("stop")] = "stop"
    teacher_states: Annotated[Literal["batched", "by_row", "cached"], _left_out("batched")] = "batched"
    validation: Annotated[Validation | None, _left_out(None)] = None
    objective: Annotated[tuple[Term, ...], Field(min_length=1)]

    @property
    def paths(self) -> frozenset[str]:
        """The paths that a step of this stage computes."""
        return frozenset().union(*(term.paths for term in self.objective))

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The data sets that this stage reads, to train and to validate."""
        own = self.validation.data if self.validation is not None else None
        return (self.data,) if own is None else (self.data, own)

    @property
    def needs_teacher(self) -> bool:
        return bool(self.paths & {"teacher", "switch"})


class DeepSpeed(Strict):
    """How DeepSpeed shards the training over the processes.

    `zero` is ZeRO's stage: 1 shards the optimiser's states, 2 the gradients too, 3 the student's weights too; 0 is torch
    alone. `offload` keeps the optimiser's states, or the parameters too, in the machine's memory.
    """

    zero: Annotated[int, Field(strict=True, ge=0, le=3)] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"


class Evaluation(Strict):
    """The benchmarks that a finished model is scored on.

    `items` is the number of questions of each benchmark (none: all). `seed` draws the playground's questions; it is the
    same for every seed of a run, so that runs can be paired item by item.
    """

    world: Literal["playground", "hub"] = "playground"
    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]
    split: Literal["train", "validation", "test", "hard"] = "test"
    items: Count | None = None
    seed: Seed = 0
    batch: Count = 64


class Saving(Strict):
    """How often a checkpoint is written during training, and which are kept: the newest `keep`, and the best.

    With both `every_steps` and `every_minutes`, whichever comes first counts; with neither, a checkpoint is written only
    when the run is stopped. `best` names a figure in metrics.jsonl. A training figure is averaged over the steps
    between two checkpoints; with one of the last stage's validation, a checkpoint is also written after each validation
    that is the best so far. No result depends on these settings.
    """

    every_steps: Count | None = None
    every_minutes: Positive | None = 15.0
    keep: Count = 2
    best: Text | None = None


class TableRow(Strict):
    """A row of a table: a patch on the recipe, and the numbers that the paper prints for it.

    `paper` may also be the name of an entry in recipes/printed/; loading puts the numbers in its place.
    """

    title: str = ""
    paper: dict[str, Annotated[float, Field(strict=True)]] = {}
    drop: tuple[str, ...] = ()
    set: dict[str, Any] = {}


class Recipe(Strict):
    """A recipe, or one row of it, resolved.

    `world` and its `stand_ins` are written by `--world`; no result depends on them, nor on `check`, which compares the
    chunked objective with the dense one in each stage's first step, nor on the `trackers`, names in registry.yaml.
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
    trackers: Annotated[tuple[Text, ...], _left_out(DEFAULT_TRACKERS)] = DEFAULT_TRACKERS
    controls: tuple[str, ...] = ()
    rows: dict[Name, TableRow] = {}

    @property
    def arithmetic(self) -> str:
        """The arithmetic of the training, which its numbers depend on; they don't depend on how it is sharded.

        `bf16` is torch's mixed precision over float32 weights; DeepSpeed has bf16 weights, and float32 copies of them.
        """
        return "bf16 weights" if self.precision == "bf16" and self.deepspeed.zero else self.precision

    @property
    def needs_template(self) -> bool:
        """Whether a stage's data set names no template, so that the student's own chat template is used."""
        return any(self.data[name].template is None for stage in self.stages for name in stage.data_sets)
