"""The three logits paths of Switch-KD as one module (paper Eqs. 4-6, Algorithm 1), and their intermediate outputs."""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from switchkd_cli.engine.batch import Batch, ImageInput
from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.models.family import VisionLanguageModel
from switchkd_cli.engine.per_image import PerImage, apply
from switchkd_cli.engine.teacher_states import TeacherStates

PATHS = ("student", "teacher", "switch")


def output_name(path: str, kind: str = "logits") -> str:
    """Return the name of a path's output: `teacher` for its logits, `teacher.tokens` for its visual tokens."""
    return path if kind == "logits" else f"{path}.{kind}"


class Paths(nn.Module):
    """Compute student, teacher and switch logits of one batch and, on request, what they are computed from.

    | path    | formula              | gradient reaches            |
    |---------|----------------------|-----------------------------|
    | student | L_S(P_S(V_S(x)))     | V_S, P_S, L_S               |
    | teacher | L_T(P_T(V_T(x)))     | nothing                     |
    | switch  | L_T(P_T(V_S(x)))     | V_S, through frozen P_T, L_T |

    | kind      | output                                        | shape              |
    |-----------|-----------------------------------------------|--------------------|
    | logits    | L's logits, at the positions of `keep`        | [N, vocabulary]    |
    | hidden    | L's hidden states there, before the head      | [N, width of L]    |
    | features  | V's features, before the projector            | [P, F, width of V] |
    | tokens    | P's visual tokens, before the language model  | [P, M, width of L] |
    | attention | L's first layer, from text to visual tokens   | [P, T, M, heads]   |
    | focus     | the mean of `attention` over heads            | [P, T, M]          |

    Only the requested outputs are computed: features alone need no language model. Logits are cut to `vocabulary`
    columns, the ids that both tokenizers share, so that padding columns of a wider head never enter a loss.

    Where V_S or P_S is trained, a batch without images gets a blank one, which no token reads: every module of the
    student runs on every batch, whatever the batches of other processes hold, and every gradient exists, some zero.
    `states` computes the teacher's hidden states example by example, so that they can be cached; None: batch by batch.
    `one_tower` is set where V_S stays equal to V_T: the student's features are the teacher's too, and V_T doesn't run.
    """

    def __init__(self, student: VisionLanguageModel, teacher: VisionLanguageModel | None, vocabulary: int) -> None:
        super().__init__()
        self.student = student
        self._untracked = (teacher.requires_grad_(False).eval() if teacher is not None else None,)
        self.vocabulary = vocabulary
        self.adapters = nn.ModuleDict()
        self.one_tower = False
        self.states: TeacherStates | None = None

    @property
    def teacher(self) -> VisionLanguageModel | None:
        """The frozen teacher. It is no submodule, so that training, sharding and saving see only the student's weights."""
        return self._untracked[0]

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> "Paths":
        """Move or cast the teacher together with the student."""
        if self.teacher is not None:
            self.teacher._apply(change, recurse)
        return super()._apply(change, recurse)

    def twin(self) -> "Paths":
        """Return paths with a copy of the student and its adapters, and the same teacher."""
        twin = Paths(
            type(self.student)(copy.deepcopy(self.student.model), self.student.inputs), self.teacher, self.vocabulary
        )
        twin.adapters, twin.one_tower, twin.states = copy.deepcopy(self.adapters), self.one_tower, self.states
        twin.student.recomputed_parts = self.student.recomputed_parts
        return twin

    def recompute(self, layers: Collection[str]) -> None:
        """Turn on activation checkpointing for layers of V_S (`vision`), L_S (`student`), L_T in the switch path (`switch`)."""
        student_parts = {"vision": "vision", "student": "language"}
        self.student.recomputed_parts = frozenset(student_parts[name] for name in layers if name in student_parts)
        if self.teacher is not None:  # the teacher path takes no gradient and needs no checkpointing
            self.teacher.recomputed_parts = frozenset({"language"} if "switch" in layers else ())

    def adapt(self, names: Collection[str], seed: int = 0) -> list[nn.Parameter]:
        """Draw new adapters for the outputs of these names and return their weights, to be trained.

        Where the student's features, tokens or attention heads are not as wide as the teacher's, a linear layer maps them
        to the teacher's width (FitNets, 1412.6550). It belongs to the training, not to the student.
        """
        self.adapters = nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)
        for kind, ours in sorted(self.student.widths.items()):
            theirs = self.teacher.widths[kind] if self.teacher is not None else ours
            compared = {output_name("teacher", kind), output_name("switch", kind)} & set(names)
            if output_name("student", kind) in names and compared and ours != theirs:
                adapter = nn.Linear(ours, theirs, bias=False)
                nn.init.xavier_uniform_(adapter.weight, generator=generator)
                self.adapters[kind] = adapter
        return list(self.adapters.parameters())

    def forward(self, batch: Batch, names: Collection[str], keep: Tensor) -> dict[str, Any]:
        """Return the outputs of these names (see `output_name`).

        `keep` is [B, T] bool with N true entries; logits are [N, vocabulary], in the order of `keep`'s rows.
        Positions are chosen before the head, so no [B, T, vocabulary] tensor exists.
        """
        kinds = {path: _kinds(names, path) for path in PATHS}
        needs_vision = kinds["student"] or kinds["switch"] or (kinds["teacher"] and self.one_tower)
        features, images = self._encode(batch.images) if needs_vision else ((), batch.images)
        outputs: dict[str, PerImage] = {}
        if kinds["student"]:
            values = self._project_and_read(self.student, features, images, batch, kinds["student"], keep)
            values |= {k: apply(adapter, values[k]) for k, adapter in self.adapters.items() if k in values}
            outputs |= _named("student", values)
        if kinds["teacher"]:
            with torch.no_grad():
                values = self._teacher_outputs(features, images, batch, kinds["teacher"], keep)
                outputs |= _named("teacher", values)
        if kinds["switch"]:
            outputs |= _named(
                "switch", self._project_and_read(self._required_teacher, features, images, batch, kinds["switch"], keep)
            )
        return outputs

    def heads(self, dtype: torch.dtype | None = None) -> Heads:
        """Return the LM head of each path, which turns `hidden` into logits; `dtype` is the one of mixed precision."""
        models = {"student": self.student, "teacher": self.teacher, "switch": self.teacher}
        weights = {path: model.head for path, model in models.items() if model is not None}
        return Heads(weights, self.vocabulary, dtype)

    def _encode(self, images: Sequence[ImageInput]) -> tuple[PerImage, Sequence[ImageInput]]:
        """Return the student's features and their images: one blank image where V_S or P_S is trained and there is none."""
        parameters = (p for part in ("vision", "projector") for m in self.student.parts[part] for p in m.parameters())
        if not images and torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            images = [self.student.blank_image()]
        return self.student.encode(images), images

    def _teacher_outputs(
        self, features: PerImage, images: Sequence[ImageInput], batch: Batch, kinds: Collection[str], keep: Tensor
    ) -> dict[str, PerImage]:
        """Return the teacher's outputs; its hidden states come from `states` where that is set."""
        teacher, states = self._required_teacher, self.states
        from_states = [] if states is None else [kind for kind in kinds if kind in ("hidden", "logits")]
        other = [kind for kind in kinds if kind not in from_states]
        values: dict[str, PerImage] = {}
        if other:
            if self.one_tower:
                features = apply(Tensor.detach, features)
            else:
                features, images = teacher.encode(batch.images), batch.images
            values = self._project_and_read(teacher, features, images, batch, other, keep)
        if states is not None and from_states:
            values["hidden"] = hidden = states(batch, keep, self._teacher_states)
            if "logits" in from_states:
                values["logits"] = teacher.logits(hidden)[:, : self.vocabulary]
        return {kind: values[kind] for kind in kinds}

    def _teacher_states(self, batch: Batch, keep: Tensor) -> Tensor:
        """Return the teacher's hidden states [N, D]."""
        teacher = self._required_teacher
        tokens = teacher.project(teacher.encode(batch.images), batch.images)
        return teacher.hidden_states(batch, tokens, keep)

    @property
    def _required_teacher(self) -> VisionLanguageModel:
        """The teacher. Raises ValueError where these paths have none."""
        if self.teacher is None:
            raise ValueError("these paths have no teacher")
        return self.teacher

    def _project_and_read(
        self,
        model: VisionLanguageModel,
        features: PerImage,
        images: Sequence[ImageInput],
        batch: Batch,
        kinds: Collection[str],
        keep: Tensor,
    ) -> dict[str, PerImage]:
        """Return the outputs of one model's P and L for these features; it stops after the last step that `kinds` need."""
        values: dict[str, PerImage] = {"features": features}
        if set(kinds) - {"features"}:
            values["tokens"] = model.project(features, images)
        if {"attention", "focus"} & set(kinds):
            values["attention"] = model.attention(batch, values["tokens"])
            values["focus"] = apply(lambda heads: heads.mean(-1), values["attention"])
        if {"logits", "hidden"} & set(kinds):
            values["hidden"] = hidden = model.hidden_states(batch, values["tokens"], keep)
            if "logits" in kinds:
                values["logits"] = model.logits(hidden)[:, : self.vocabulary]
        real = slice(len(batch.images))  # without the blank image
        return {k: values[k] if k in ("logits", "hidden") else values[k][real] for k in kinds}


def _kinds(names: Collection[str], path: str) -> list[str]:
    """Return the kinds of output that `names` hold for one path."""
    split = (name.partition(".") for name in sorted(names))
    return [kind or "logits" for of, _, kind in split if of == path]


def _named(path: str, values: dict[str, PerImage]) -> dict[str, PerImage]:
    return {output_name(path, kind): value for kind, value in values.items()}
