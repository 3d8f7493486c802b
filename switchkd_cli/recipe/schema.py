"""The fields of a recipe and their types, as frozen pydantic models that refuse unknown keys.

What one field means for another is checked in validate.py. The text below a field says what it means: scripts/recipe_fields.py
writes docs/recipe_fields.md from it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator
from pydantic_core import PydanticCustomError

from switchkd_cli import registry

NAME = r"^[A-Za-z][A-Za-z0-9_-]*$"  # no dots: names are steps of dotted paths and names of folders

Name = Annotated[str, Field(pattern=NAME)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Positive = Annotated[float, Field(strict=True, gt=0)]
NotNegative = Annotated[float, Field(strict=True, ge=0)]
Beta = Annotated[float, Field(strict=True, ge=0, lt=1)]
Part = Literal["vision", "projector", "language", "adapter"]
Recomputed = Literal["vision", "student", "switch"]
RECOMPUTED = get_args(Recomputed)

# Figures that the best checkpoint may be chosen by, in addition to each term's loss/<term>: the lowest or highest is best.
HIGHER = ("agreement/student", "agreement/switch", "validation/agreement", "validation/exact_match")
FIGURES = ("loss", "student_ce", "kl/student", "switch_gap", *HIGHER)
VALIDATION = "validation/"  # begins the names of figures that are not the training's

DEFAULT_TRACKERS = ("tensorboard",)

TAG = "is "  # begins the tags of unions, to tell them from fields in the locations of pydantic's errors


def _left_out(default: Any) -> Any:
    """Leave a field with its default value out of keys, so that runs from before the field existed are found again."""
    return Field(exclude_if=lambda value: value == default)


class Strict(BaseModel):
    """A frozen model without unknown keys, NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def as_far_as_it_fits(cls, data: Any) -> Self:
        """Return broken data as a model, to check the rest of it: what is missing or wrong has a stand-in (`_stand_in`)."""
        return cls.model_validate(data, extra="ignore", context=_BROKEN)

    @model_validator(mode="before")
    @classmethod
    def _has_every_field(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        if info.context is not _BROKEN:
            return value
        needed = [field.alias or name for name, field in cls.model_fields.items() if field.is_required()]
        return dict.fromkeys(needed) | (value if isinstance(value, dict) else {})

    @pydantic.field_validator("*", mode="wrap")
    @classmethod
    def _fits_or_stands_in(cls, value: Any, fit: Callable[[Any], Any], info: pydantic.ValidationInfo) -> Any:
        try:
            return fit(value)
        except pydantic.ValidationError as error:
            if info.context is not _BROKEN:
                raise
            wrong = {item["loc"][0] for item in error.errors() if item["loc"]}
        if isinstance(value, dict):
            with suppress(pydantic.ValidationError):
                return fit({key: of for key, of in value.items() if key not in wrong})
        return _stand_in(cls.model_fields[str(info.field_name)])


_BROKEN = "what is wrong has a stand-in"  # the context of a validation


def _stand_in(field: Any) -> Any:
    """Return a field's default or, where that is None or there is none, an empty value: the field is there, but says nothing."""
    if not field.is_required() and field.default is not None:
        return field.default
    forms = [getattr(form, "__origin__", form) for form in (field.annotation, *get_args(field.annotation))]
    return next((form() for form in forms if form in (str, int, float, tuple, dict)), "")


class Fresh(Strict):
    """A part with random weights."""

    fresh: dict[str, Any]
    """Keys of the part's transformers configuration (`SiglipVisionConfig`, `Qwen2Config`)."""


def _part_form(value: Any) -> str:
    return TAG + ("fresh" if isinstance(value, dict | Fresh) else "named")


PartSource = Annotated[
    Annotated[Text, Tag(TAG + "named")] | Annotated[Fresh, Tag(TAG + "fresh")], Discriminator(_part_form)
]


class Parts(Strict):
    """A model made of a vision tower and a language model, with a fresh projector between them."""

    family: str
    """The kind of model, a name in registry.yaml: `llava`."""
    vision: PartSource
    """The vision tower: a folder, a hub id, `playground:NAME`, or `{fresh: {...}}`."""
    language: PartSource
    """The language model: a folder, a hub id, `playground:NAME`, or `{fresh: {...}}`."""
    projector: Literal["mlp2x_gelu", "ldpnetv2"] = "mlp2x_gelu"
    """The projector: an MLP of two layers, or MobileVLM V2's, which makes a quarter of the tokens."""
    frozen_projector: Annotated[Text | None, _left_out(None)] = None
    """A whole LLaVA, such as the teacher, whose projector the student keeps as it is; a linear map behind it is fresh, and
    what `projector` in `train` trains (none: all of the projector is)."""
    tokenizer: Text | None = None
    """The folder or hub id of a tokenizer (none: the language model's own). A fresh language model has none."""
    image_processor: Annotated[Text | None, _left_out(None)] = None
    """The tower or whole model whose image preparation is used (none: the student's own tower)."""
    feature_layer: Annotated[int, Field(strict=True)] = -2
    """The layer of the tower whose output the projector gets; transformers' `vision_feature_layer`."""
    feature_select: Literal["full", "default"] = "full"
    """`default` drops the first feature, `full` keeps all; transformers' `vision_feature_select_strategy`."""
    allow_pickle: bool = False
    """Read parts without safetensors from pytorch_model.bin (tensors only)."""


class Checkpoint(Strict):
    """A whole model, of a family in registry.yaml."""

    family: Annotated[str | None, _left_out(None)] = None
    """The kind of model, a name in registry.yaml (none: the one that reads the checkpoint's `model_type`)."""
    checkpoint: Text
    """A folder, a hub id, or `playground:NAME`."""
    allow_pickle: bool = False
    """Read a checkpoint without safetensors from pytorch_model.bin (tensors only)."""


class TeacherModel(Checkpoint):
    """The frozen model that a student learns from, and how its weights are kept in memory."""

    bits: Annotated[Literal[4, 8] | None, _left_out(None)] = None
    """Keep the linear layers of its language model in 8 or 4 bits (none: as they are); needs bitsandbytes."""
    weights: Annotated[Literal["whole", "offloaded", "sharded"], _left_out("whole")] = "whole"
    """Where the layers of its language model are while they don't run: on the device; in the machine's memory
    (`offloaded`); or in equal parts in all processes (`sharded`). No result depends on it."""


def _model_form(value: Any) -> str:
    whole = "checkpoint" in value if isinstance(value, dict) else isinstance(value, Checkpoint)
    return TAG + ("checkpoint" if whole else "parts")


Model = Annotated[
    Annotated[Parts, Tag(TAG + "parts")] | Annotated[Checkpoint, Tag(TAG + "checkpoint")], Discriminator(_model_form)
]


class DataSet(Strict):
    """A registered source, its arguments, and how its examples are written as tokens."""

    source: str
    """`llava_json` (LLaVA-1.5 rows), `messages` (rows of messages), `files` (of any `format`), `hugging_face`, `playground`,
    or a name that you registered."""
    parameters: dict[str, Any] = {}
    """The arguments of the source: `file`, `images`, `limit`, `turns`, `follow_links` of the first three."""
    template: str | None = None
    """The conversation template that writes a row as text (none: the model's own chat template)."""
    max_length: Count | None = None
    """The most tokens of an example, image tokens included (none: no limit). What is longer is cut."""
    max_faults: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.01
    """The run stops when more than this share of the examples is unusable."""
    images_by: Literal["content", "size_and_time", "names"] = "content"
    """How images are compared with those of a finished run: by their bytes; by their sizes and times of change, without
    reading them; or by their names alone, without looking whether they exist."""


Keys = Annotated[tuple[Text, ...], Field(min_length=1)]


class RowFormat(Strict):
    """The keys of a format's rows: of a list of turns, or of questions and answers. registry.yaml explains them."""

    turns: Text | None = None
    """The key of a row's list of turns (none: a row is one question and its answer)."""
    speaker: Text | None = None
    """The key of a turn's speaker."""
    text: Text | None = None
    """The key of a turn's text."""
    asks: Keys = ("human",)
    """The speakers who ask."""
    answers: Keys = ("gpt",)
    """The speakers who answer."""
    question: tuple[Text, ...] = ()
    """The keys of a question, of each turn or of the row; several are joined by line breaks."""
    answer: Text | None = None
    """The key of its answer."""
    chosen: Text | None = None
    """The key of the answer that is preferred, where it comes apart from the turns: a text, a turn, or a list of one."""
    rejected: Text | None = None
    """The key of an answer to the last question that was rejected: a text, a turn, or a list of one."""
    history: Text | None = None
    """The key of a list of earlier questions and answers of the row."""
    id: Text = "id"
    """The key of the row's name."""
    system: Text = "system"
    """The key of a system message."""
    images: Keys = ("image", "images")
    """The keys of a row's images."""
    placeholder: Literal["required", "optional"] = "required"
    """`optional`: an image needs no <image> in the text."""
    refused: dict[str, str] = {}
    """Keys that can't be used, and why."""
    rows: str = ""
    """What the rows look like, for a hint."""

    @model_validator(mode="after")
    def _names_turns_or_answers(self) -> Self:
        if (None in (self.turns, self.speaker, self.text)) == (self.answer is None):
            raise PydanticCustomError("row_format", "must name either `turns`, `speaker` and `text`, or `answer`")
        return self


def _recomputed(value: Any) -> Any:
    """Return the parts that `activation_checkpointing` means: `true` is all of them, `false` none."""
    if isinstance(value, bool):
        return RECOMPUTED if value else ()
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("layers_type", f"must be true, false or a list of {', '.join(RECOMPUTED)}")
    return value


class PathSpec(Strict):
    """A path through one vision tower, one projector and one language model, each of a model that the recipe names; or the
    mean of other paths.

    Models are `student`, `teacher`, `before` (the student at the stage's start, frozen) and the names under `teachers`.
    `{model: NAME}` names one for all three modules that are not named themselves.
    """

    vision: Name = "student"
    """The model whose vision tower sees the images."""
    projector: Name = "student"
    """The model whose projector turns features into visual tokens."""
    language: Name = "student"
    """The model whose language model reads text and visual tokens."""
    head: Name | None = None
    """The model whose head makes logits of the hidden states, behind a trained map to its width (none: `language`'s own). The
    map is dropped with the stage; both models have one vocabulary."""
    images: Literal["given", "blank", "mixed"] = "given"
    """`blank`: every image is grey. `mixed`: each is blended with that of another example, by twos in the order of a step; not for
    terms to labels."""
    prompt: Text | None = None
    """The text that it reads in place of each question, with {question} and perhaps {answer} in it (none: the question)."""
    mean: tuple[Name, ...] = ()
    """Instead of all these: the paths whose distributions' mean it is at each position. Terms can be `to` it."""
    by: Literal["equal", "loss"] = "equal"
    """`loss`: in each example a path of the mean counts by softmax(-its cross-entropy on the answers / temperature)."""
    temperature: Positive = 1.0
    """Of the weights by loss: the lower, the more the best path counts."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_model(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "model" not in value:
            return value
        return dict.fromkeys(MODULES, value["model"]) | {key: of for key, of in value.items() if key != "model"}

    @property
    def models(self) -> frozenset[str]:
        """The models whose modules it goes through."""
        return frozenset(() if self.mean else (self.vision, self.projector, self.language, self.speaks))

    @property
    def speaks(self) -> str:
        """The model whose head gives its logits."""
        return self.head or self.language

    @property
    def is_switch(self) -> bool:
        """Whether the teacher's projector reads the features of a student's tower, through the switch's adapter if there is one."""
        return self.vision in LEARNING and self.projector == "teacher"

    def source(self, kind: str, *, adapted: bool) -> str:
        """Return the model that an output of this kind is as wide as. `adapted`: the switch has an adapter."""
        vision = self.projector if adapted and self.is_switch else self.vision
        of_kind = {"features": vision, "tokens": self.projector, "mapped": self.speaks, "attention": self.language}
        return of_kind[kind]

    @property
    def trains(self) -> set[str]:
        """The parts that its gradient reaches."""
        of_student = {part for part in MODULES if getattr(self, part) == "student" and not self.mean}
        return of_student | {"adapter"} if of_student and self.is_switch else of_student


MODULES = ("vision", "projector", "language")
LEARNING = ("student", "before")
"""The models of the student's build; every other is a teacher."""
BUILT_IN: Mapping[str, PathSpec] = {
    "student": PathSpec(),
    "teacher": PathSpec(vision="teacher", projector="teacher", language="teacher"),
    "switch": PathSpec(projector="teacher", language="teacher"),
    "reverse": PathSpec(vision="teacher"),
    "before": PathSpec(vision="before", projector="before", language="before"),
    "blind": PathSpec(vision="teacher", projector="teacher", language="teacher", images="blank"),
    "blind_student": PathSpec(images="blank"),
}
"""The paths that every recipe has."""


def through(name: str, known: Mapping[str, PathSpec]) -> dict[str, PathSpec]:
    """Return the paths through models that a path is made of: itself, or those that it is the mean of; none if it is unknown."""
    names = known[name].mean or (name,) if name in known else ()
    return {name: known[name] for name in names if name in known}


class Focus(Strict):
    """Weights of a term's positions by a score of each. They sum to the number of positions, as without a focus."""

    by: str
    """The score, a name in registry.yaml: `switch_gap`, `teacher_entropy`, `visual_dependence`, `teacher_right` ..."""
    share: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    """The share of the positions that the score puts first (none: each weight is proportional to the score)."""
    mass: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.5
    """The share of the term's weight that these positions get; the others get the rest."""
    of: Literal["positions", "examples"] = "positions"
    """What is ranked: the positions of each example, or the examples of each micro-batch by their mean score."""
    parameters: dict[str, Any] = {}
    """The score's own parameters."""


class Ramp(Strict):
    """A weight that moves from one value to another in equal steps, and stays there."""

    model_config = ConfigDict(serialize_by_alias=True)

    from_: Annotated[NotNegative, Field(alias="from")]
    """The weight in the stage's first step."""
    to: NotNegative
    """The weight at the end of the ramp."""
    over: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    """The share of the stage's steps that the ramp takes."""

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.from_ == self.to:
            raise PydanticCustomError("ramp", "goes from a weight to another one: give the number alone")
        return self

    def at(self, progress: float) -> float:
        """Return the weight after a share of the stage's steps."""
        moved = min(1.0, progress / self.over)
        return (1 - moved) * self.from_ + moved * self.to

    def __float__(self) -> float:
        return self.from_

    def __str__(self) -> str:
        return f"({self.from_:g} to {self.to:g} over {self.over:.0%})"


class Learned(Strict):
    """A weight w that is trained with the student: w · loss - log(w) is minimised (Kendall et al., 1705.07115)."""

    learned: Positive
    """The weight in the stage's first step."""
    lr: Positive | None = None
    """The learning rate of log(w), which follows the stage's schedule (none: the stage's)."""

    def __float__(self) -> float:
        return self.learned

    def __str__(self) -> str:
        return f"(learned from {self.learned:g})"


def _weight_form(value: Any) -> str:
    if isinstance(value, Learned) or (isinstance(value, dict) and "learned" in value):
        return TAG + "learned"
    return TAG + ("ramp" if isinstance(value, dict | Ramp) else "constant")


class Term(Strict):
    """One summand of a stage's objective: weight · loss(to, of) on the chosen positions."""

    kind: ClassVar[registry.Kind] = "loss"
    name: Name
    """The term's name in metrics, rows and overrides (none: that of its loss). No two terms of a stage share one."""
    loss: str
    """A loss, a name in registry.yaml."""
    of: Name = "student"
    """The path that learns: `student` trains all parts of the student, `switch` its vision tower; others: docs/methods.md."""
    to: Name = "labels"
    """What it is compared with: `labels` (the right answers), `teacher`, or another path."""
    on: Literal["answer", "text", "image", "all", "chosen", "rejected", "pair"] = "answer"
    """The positions that count: the answers' tokens (without rejected ones), all text, the image tokens, or all; of rows with
    a preference the `chosen` answer, the `rejected` one, or the `pair`. Losses on images take none."""
    answers: Annotated[Literal["given", "own", "both"] | None, _left_out(None)] = None
    """Count them in examples with the data's answers (`given`), with the student's `own`, or in `both` (none: `given` of a
    term with labels, else `both`); docs/methods.md."""
    alignment: Annotated[Literal["positions", "bytes"], _left_out("positions")] = "positions"
    """What student and teacher are compared at: equal positions, or equal bytes of the answers' text, where each reads it
    as its own tokens; docs/methods.md."""
    weight: Annotated[
        Annotated[NotNegative, Tag(TAG + "constant")]
        | Annotated[Ramp, Tag(TAG + "ramp")]
        | Annotated[Learned, Tag(TAG + "learned")],
        Discriminator(_weight_form),
    ] = 1.0
    """The factor of the term in the sum: a number, `{from: 0, to: 1, over: 0.3}`, or `{learned: 1}`; docs/methods.md."""
    focus: Annotated[Focus | None, _left_out(None)] = None
    """Which positions have a larger part in the term, such as `{by: switch_gap, share: 0.2}` (none: all are equal)."""
    parameters: dict[str, Any] = {}
    """The loss's own parameters, such as `temperature`; docs/methods.md has the losses."""

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_loss(cls, value: Any) -> Any:
        return {"name": value["loss"], **value} if isinstance(value, dict) and "loss" in value else value

    @property
    def positions(self) -> str:
        """The positions that count, as `Batch.predicting` names them."""
        answers = self.answers or ("given" if self.to == "labels" else "both")
        return self.on if answers == "both" else f"{answers} {self.on}"

    @property
    def paths(self) -> frozenset[str]:
        """The paths whose outputs this term reads: `of`, `to`, and those that its loss or its score names itself."""
        return frozenset({*self.sides.values(), *(self.score.sides if self.score else ())})

    @property
    def sides(self) -> dict[str, str]:
        """The path that each side of its loss is: its `of` and `to`, and any other the path of this name."""
        named = {side: side for side in self.signature.sides}
        return {**named, "teacher": self.of if self.to == "labels" else self.to, "student": self.of}

    @property
    def reads(self) -> frozenset[tuple[str, str]]:
        """What its loss reads: paths, each with the kind of its output."""
        return frozenset((self.sides[side], kind) for side, kind in self.signature.reads)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of outputs that it compares."""
        return frozenset(kind for _, kind in self.signature.reads)

    @property
    def signature(self) -> registry.Signature:
        """The signature of its loss."""
        return registry.read_signature(self.kind, self.loss)

    @property
    def score(self) -> registry.Signature | None:
        """The signature of the score that the term's positions are weighted by, if they are not all equal."""
        return registry.read_signature("focus", self.focus.by) if self.focus and self.focus.share != 1 else None


class Answers(Strict):
    """The student's own answers, sampled before a step, in place of the data's (on-policy distillation)."""

    own: Annotated[float, Field(strict=True, ge=0, le=1)]
    """The share of the examples that get own answers: which ones is decided by their order, not by chance."""
    temperature: NotNegative = 1.0
    """The temperature of the sampling (0: always the most likely token)."""
    max_tokens: Count = 64
    """The most tokens of an own answer, its end token included."""


class Validation(Strict):
    """Examples that a stage does not train on, and after how many steps its figures are computed on them again."""

    data: Name | None = None
    """The data set to validate on; no stage up to this one may train on it."""
    share: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    """Instead of `data`: this share of the stage's own data, drawn image by image, which its training leaves out."""
    every_steps: Count
    """Validate after this number of steps each time, and after the last step."""
    rows: Count = 500
    """At most this number of examples is computed: the same ones for every row of a table and every seed."""
    patience: Count | None = None
    """The stage ends after this number of validations in a row without a better `monitor` (none: never)."""
    monitor: Text = "validation/loss"
    """The figure that `patience` waits for, such as `validation/loss` or `validation/exact_match`."""


class Portion(Strict):
    """A data set of a mixture, and its weight among the others: their share of the examples that the stage trains on."""

    use: Name
    """A data set, a name under `data`."""
    weight: Positive
    """Its weight among the others."""

    def __str__(self) -> str:
        return f"{self.use} x{self.weight:g}"


class Lora(Strict):
    """Adapters of low rank on the linear layers of the student's language model, trained instead of its weights."""

    rank: Count = 16
    """The rank of each adapter."""
    alpha: Positive | None = None
    """The adapters' output is multiplied by `alpha` / `rank` (none: by 2)."""
    dropout: Beta = 0.0
    """The share of an adapter's inputs that are dropped."""
    layers: tuple[Text, ...] = ()
    """The kinds of layers that get adapters, such as `[q_proj, v_proj]` (none: all linear layers below the head)."""
    dora: bool = False
    """Train each weight's length apart from its direction: DoRA (not with ZeRO-3)."""
    bits: Literal[4, 8] | None = None
    """Meanwhile keep the linear layers' own weights in 4 bits, as QLoRA does, or in 8 (none: as they are)."""

    @property
    def scale(self) -> float:
        return 2.0 * self.rank if self.alpha is None else self.alpha


class Mixer(Strict):
    """Rounds of a stage, before each of which a rule decides by what the student still lacks which rows it visits."""

    by: str
    """The rule, a name in registry.yaml: `ddk` sets the weights of a mixture, the others choose rows; docs/methods.md."""
    rounds: Count
    """Into how many rounds of equal length the stage's steps are divided: at most as many as it has steps."""
    rows: Count = 64
    """Of weights: held-out rows of each data set, which the stage doesn't train on; at most a tenth of the set."""
    candidates: Count = 1
    """Of rows: the number of candidates, the next ones in the plain order, for each new row of a round."""
    variants: Count = 1
    """Of rows: each candidate is scored in this number of variants of its images, and the one with the highest score taken."""
    strength: NotNegative = 0.1
    """The standard deviation of contrast and brightness in a variant, in units of the pixels' own."""
    again: bool = False
    """Of rows: those of the round before are candidates, too."""
    parameters: dict[str, Any] = {}
    """The rule's own parameters."""

    def steps_of_round(self, steps: int) -> int:
        """Return the steps of a round, of all of a stage's; the last round may be shorter."""
        return -(-steps // self.rounds)


def _data_form(value: Any) -> str:
    return TAG + ("one" if isinstance(value, str) else "mixed")


class Stage(Strict):
    """One phase of training."""

    name: Name
    """The stage's name in metrics, rows and overrides."""
    data: Annotated[
        Annotated[str, Tag(TAG + "one")] | Annotated[tuple[Portion, ...], Field(min_length=1), Tag(TAG + "mixed")],
        Discriminator(_data_form),
    ]
    """A data set, a name under `data`; or a mixture of several: `[{use: NAME, weight: 0.7}, ...]`, docs/data.md."""
    mixer: Annotated[Mixer | None, _left_out(None)] = None
    """Decide from round to round which rows to visit (none: all of them, in an order that the seed alone decides)."""
    train: Annotated[tuple[Part, ...], Field(min_length=1)]
    """The student's parts that learn, and the switch's `adapter`; the others stay frozen."""
    lora: Annotated[Lora | None, _left_out(None)] = None
    """Of the `language` in `train`, only adapters of low rank learn; they are merged when the stage ends (none: all of it
    learns). Needs peft, with `bits` also bitsandbytes."""
    lr: Positive
    """The highest learning rate, after the warm-up."""
    lr_scale: dict[Part, NotNegative] = {}
    """Factors of `lr` for single parts, such as `{vision: 0.1}`."""
    batch: Count
    """Examples of an optimiser step, over all processes and micro-batches."""
    micro_batch: Count | None = None
    """The most examples that one process holds at once (none: its whole share of `batch`). It divides `batch`."""
    group_by: Literal["modality_length"] | None = None
    """`modality_length` makes steps of examples with images only or of text only, and micro-batches of examples of similar
    length: less padding."""
    workers: Annotated[int, Field(strict=True, ge=0, le=1024)] | None = None
    """Processes that prepare data (none: as many as suit data and machine). No result depends on their number."""
    activation_checkpointing: Annotated[tuple[Recomputed, ...], BeforeValidator(_recomputed)] = ()
    """Keep only the inputs of the layers of V_S (`vision`), of L_S (`student`), and of L_T in the switch path (`switch`);
    `true` is all three, `false` none. They are computed again in the backward pass: less memory, the same gradient."""
    steps: Count | None = None
    """Optimiser steps of the stage; give either these or `epochs`."""
    epochs: Annotated[float, Field(strict=True, gt=0, le=10**6)] | None = None
    """Passes over the data, also fractions."""
    warmup: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.03
    """The share of the steps in which the learning rate rises from 0."""
    schedule: str = "cosine"
    """The learning rate's schedule after the warm-up, a name in registry.yaml; docs/recipes.md lists them."""
    schedule_parameters: Annotated[dict[str, Any], _left_out({})] = {}
    """The parameters of the schedule, such as `{min_lr: 1.0e-6}`."""
    optimizer: Annotated[Literal["adamw", "adamw_8bit"], _left_out("adamw")] = "adamw"
    """AdamW, or AdamW with its moments in 8 bits (needs bitsandbytes; not with DeepSpeed)."""
    betas: Annotated[tuple[Beta, Beta] | None, _left_out(None)] = None
    """AdamW's betas (none: torch's, 0.9 and 0.999)."""
    eps: Annotated[Positive | None, _left_out(None)] = None
    """AdamW's epsilon (none: torch's, 1e-8)."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay."""
    grad_clip: Positive | None = 1.0
    """The largest norm of the gradient, over all trained parts (`null`: not clipped)."""
    not_finite: Annotated[Literal["stop", "skip"], _left_out("stop")] = "stop"
    """A step with a non-finite loss or gradient ends the run, or leaves the weights unchanged (`skip`; ten such steps in a
    row end the run too)."""
    bits: Annotated[Literal[4, 8] | None, _left_out(None)] = None
    """Train for weights of 4 or 8 bits: the linear layers of the student's V and L compute with rounded weights, as
    `switchkd eval --bits` rounds them, while their own keep learning (none: not rounded). Needs torchao."""
    teacher_states: Annotated[Literal["batched", "by_row", "cached"], _left_out("batched")] = "batched"
    """How the teacher's hidden states are computed: in the student's batches; example by example, without padding; or
    example by example and then kept on disk for later epochs and runs. The last two give identical numbers; the first
    differs by rounding."""
    answers: Annotated[Answers | None, _left_out(None)] = None
    """Give a share of the examples the student's own answers (none: all keep the data's)."""
    validation: Annotated[Validation | None, _left_out(None)] = None
    """Measure the student on examples that the stage does not train on (none: it doesn't)."""
    objective: Annotated[tuple[Term, ...], Field(min_length=1)]
    """The terms whose weighted sum is minimised."""
    _known: Mapping[str, PathSpec] = PrivateAttr(default=BUILT_IN)
    """Every path of its recipe, by name."""

    def micro_batch_of(self, processes: int) -> int:
        """Return how many examples a process holds at once: `micro_batch`, or the largest number below that divides its share.

        The processes divide the batch evenly: `preflight.check_batches` has checked it.
        """
        each = self.batch // processes
        return max(n for n in range(1, min(self.micro_batch or each, each) + 1) if each % n == 0)

    @property
    def ranks_examples(self) -> bool:
        """Whether a focus ranks the examples of a micro-batch."""
        return any(term.focus is not None and term.focus.of == "examples" for term in self.objective)

    def parts_examples(self, processes: int) -> bool:
        """Whether the micro-batches of these processes part examples that a focus ranks, or two whose images are mixed."""
        held = self.micro_batch_of(processes)
        mixed = any(path.images == "mixed" for path in self.readings.values())
        return (self.ranks_examples and held != (self.micro_batch or self.batch)) or (mixed and held % 2 == 1)

    @property
    def paths(self) -> frozenset[str]:
        """The paths that the terms of this stage name."""
        return frozenset().union(*(term.paths for term in self.objective))

    @property
    def readings(self) -> dict[str, PathSpec]:
        """The paths through models that a step of this stage computes, by name."""
        return {name: path for named in sorted(self.paths) for name, path in through(named, self._known).items()}

    @property
    def means(self) -> dict[str, PathSpec]:
        """The means of paths that its terms compare with, by name."""
        return {name: self._known[name] for name in self.paths if self._known[name].mean}

    @property
    def models(self) -> frozenset[str]:
        """The models that a step of this stage needs."""
        of_mixer = {"teacher"} if self.mixer is not None else set()
        return frozenset(of_mixer.union(*(path.models for path in self.readings.values())))

    @property
    def data_sets(self) -> tuple[str, ...]:
        """The data sets that this stage reads, to train and to validate."""
        own = self.validation.data if self.validation is not None else None
        return self.trained_on if own is None else (*self.trained_on, own)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The names of the data sets that this stage trains on."""
        return (self.data,) if isinstance(self.data, str) else tuple(portion.use for portion in self.data)

    @property
    def own_answers(self) -> bool:
        """Whether some examples get the student's own answers."""
        return self.answers is not None and self.answers.own > 0

    @property
    def needs_teacher(self) -> bool:
        return not self.models.issubset(LEARNING)


class DeepSpeed(Strict):
    """How DeepSpeed shards the training over the processes."""

    zero: Annotated[int, Field(strict=True, ge=0, le=3)] = 0
    """ZeRO's stage: 1 shards the optimiser's states, 2 the gradients too, 3 the student's weights too; 0 is torch alone."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Keep the optimiser's states, or the parameters too, in the machine's memory."""


class Switch(Strict):
    """How the student's visual features get to the teacher's projector."""

    adapter: Literal["linear"] | None = None
    """`linear`: by a map to the width of the teacher's features, with a resize where the grids differ. The stages that name
    `adapter` in `train` train it; it is not saved with the student. None: both towers need one width and one grid."""


class Evaluation(Strict):
    """The benchmarks that a finished model is scored on."""

    world: Literal["playground", "hub", "rows"] = "playground"
    """`playground`: questions that the package makes. `hub`: the published benchmarks. `rows`: one's own rows alone."""
    data: Annotated[DataSet | None, _left_out(None)] = None
    """One's own rows as a benchmark, asked by `rows.METRIC` among `benchmarks`: a source and its parameters."""
    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Tasks or groups of the installed lmms-eval or of `tasks_path`; `rows.exact` and others ask the rows of `data`."""
    tasks_path: Annotated[Text | None, _left_out(None)] = None
    """A folder of one's own tasks for lmms-eval."""
    split: Literal["train", "validation", "test", "hard", "unseen"] = "test"
    """The playground's split; published benchmarks have their own."""
    items: Count | None = None
    """The number of questions of each benchmark (none: all). The playground needs a number."""
    seed: Seed = 0
    """Draws the playground's questions; the same for every seed of a run, so that runs can be paired item by item."""
    batch: Count = 64
    """Questions that are answered at once."""


class Saving(Strict):
    """How often a checkpoint is written during training, and which are kept. No result depends on these settings.

    With both `every_steps` and `every_minutes`, whichever comes first counts; with neither, a checkpoint is written only
    when the run is stopped.
    """

    every_steps: Count | None = None
    """Write one after this number of steps of a stage."""
    every_minutes: Positive | None = 15.0
    """Write one this number of minutes after the one before (`null`: not by time)."""
    keep: Count = 2
    """The number of newest checkpoints that are kept."""
    best: Text | None = None
    """Keep also the best by this figure of metrics.jsonl; docs/runs.md lists them. A training figure is averaged over the
    steps between two checkpoints; with one of the last stage's validation, a checkpoint is also written after each
    validation that is the best so far."""


class TableRow(Strict):
    """A row of a table: a patch on the recipe, and the numbers that the paper prints for it."""

    title: str = ""
    """The row's title in tables (none: its name)."""
    paper: dict[str, Annotated[float, Field(strict=True)]] = {}
    """The paper's numbers, or the name of an entry in recipes/printed/, whose numbers take its place."""
    drop: tuple[str, ...] = ()
    """Names of terms that the row leaves out."""
    set: dict[str, Any] = {}
    """Other values, by dotted path, as in overrides on the command line: `{stages.distill.lr: 1.0e-3}`."""
    worlds: dict[str, dict[str, Any]] = {}
    """Further values that hold with `--world NAME` alone, by the world's name: the epochs that take another row's operations there."""


class Recipe(Strict):
    """A recipe, or one row of it, resolved."""

    title: str
    """The title of the tables."""
    world: Name | None = None
    """Written by `--world`: where the stand-ins come from. No result depends on it."""
    stand_ins: dict[str, str] = {}
    """Written by `--world`: what stands in for what. No result depends on it."""
    seed: Seed = 0
    """The seed of everything that is drawn."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` is torch's mixed precision over float32 weights, or bf16 weights under DeepSpeed's ZeRO."""
    deepspeed: DeepSpeed = DeepSpeed()
    """How DeepSpeed shards the training; docs/scale.md."""
    launcher: Annotated[Literal["deepspeed", "fsdp"], _left_out("deepspeed")] = "deepspeed"
    """`fsdp`: torch's FSDP2 shards the student, its gradients and AdamW's state over several processes, without DeepSpeed."""
    student: Model
    """The model that learns: made of parts, or a whole checkpoint."""
    teacher: TeacherModel | None = None
    """The model that it learns from; it stays frozen. A recipe without distillation needs none."""
    teachers: Annotated[dict[Name, Checkpoint], _left_out({})] = {}
    """Further frozen models, each a `checkpoint` as `teacher` names one, by name. A name is also a path through this model alone."""
    paths: Annotated[dict[Name, PathSpec], _left_out({})] = {}
    """Further paths for terms to compare, by name, next to student, teacher, switch, reverse, before, blind and blind_student;
    docs/methods.md."""
    switch: Annotated[Switch, _left_out(Switch())] = Switch()
    """What stands between the student's vision tower and the teacher's projector; docs/models.md."""
    data: dict[Name, DataSet]
    """The data sets, by names that the stages use."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """The phases of training, one after another."""
    evaluation: Evaluation | None = None
    """The benchmarks that the finished student and its teacher are scored on (none: not scored)."""
    checkpoints: Saving = Saving()
    """How often checkpoints are written, and which are kept."""
    check: bool = False
    """Compare the chunked objective with the dense one in each stage's first step, as `--check` does."""
    trackers: Annotated[tuple[Text, ...], _left_out(DEFAULT_TRACKERS)] = DEFAULT_TRACKERS
    """Where metrics are shown, in addition to metrics.jsonl: names in registry.yaml; docs/trackers.md."""
    controls: tuple[str, ...] = ()
    """Rows that `switchkd distill` runs along with the chosen one."""
    rows: dict[Name, TableRow] = {}
    """The rows of the table, by name: each is a patch on the recipe. The first is the default."""

    @model_validator(mode="after")
    def _stages_know_the_paths(self) -> Self:
        for stage in self.stages:
            stage._known = self.known_paths
        return self

    @property
    def known_paths(self) -> dict[str, PathSpec]:
        """Every path that a term may name."""
        alone = {name: PathSpec(vision=name, projector=name, language=name) for name in self.teachers}
        return {**BUILT_IN, **alone, **self.paths}

    @property
    def models(self) -> dict[str, Model]:
        """Every model, by the field that describes it."""
        taught = {} if self.teacher is None else {"teacher": self.teacher}
        return {"student": self.student, **taught, **{f"teachers.{name}": of for name, of in self.teachers.items()}}

    @property
    def further_teachers(self) -> dict[str, Checkpoint]:
        """Those of `teachers` that a stage needs."""
        needed = frozenset().union(*(stage.models for stage in self.stages))
        return {name: model for name, model in self.teachers.items() if name in needed}

    @property
    def arithmetic(self) -> str:
        """The arithmetic of the training, which its numbers depend on; they don't depend on how it is sharded.

        `bf16` is torch's mixed precision over float32 weights; DeepSpeed has bf16 weights, and float32 copies of them.
        """
        return "bf16 weights" if self.precision == "bf16" and self.deepspeed.zero else self.precision

    @property
    def remedies(self) -> tuple[str, ...]:
        """The verdicts on student and teacher (`PairFact`), other than yes, that the recipe provides for."""
        return ("adapter",) if self.switch.adapter is not None else ()

    @property
    def needs_template(self) -> bool:
        """Whether a stage's data set names no template, so that the student's own chat template is used."""
        return any(self.data[name].template is None for stage in self.stages for name in stage.data_sets)
