"""The three logits paths of Switch-KD as one module (paper Eqs. 4-6, Algorithm 1), and the values on the way."""

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
    """The name of what a path gives: `teacher` for its logits, `teacher.tokens` for what lies in front of them."""
    return path if kind == "logits" else f"{path}.{kind}"


class Paths(nn.Module):
    """Student, teacher and switch logits of one batch, and on request what they are made of.

    | path    | formula              | gradient reaches            |
    |---------|----------------------|-----------------------------|
    | student | L_S(P_S(V_S(x)))     | V_S, P_S, L_S               |
    | teacher | L_T(P_T(V_T(x)))     | nothing                     |
    | switch  | L_T(P_T(V_S(x)))     | V_S, through frozen P_T, L_T |

    | kind      | what                                          | shape              |
    |-----------|-----------------------------------------------|--------------------|
    | logits    | L's, at the kept positions                    | [N, vocabulary]    |
    | hidden    | L's last states there, in front of the head   | [N, width of L]    |
    | features  | V's, in front of the projector                | [P, F, width of V] |
    | tokens    | P's, in front of the language model           | [P, M, width of L] |
    | attention | L's first layer, from text to image tokens    | [P, T, M, heads]   |
    | focus     | the same, the mean over heads                 | [P, T, M]          |

    Only what is asked for is computed: features alone take no language model. Logits are cut to `vocabulary`
    columns, the ids that both tokenizers share, so that padding rows of a wider head never enter a loss.

    Where V_S or P_S is trained, text alone goes with a blank picture that nothing reads: every module of the student
    runs on every batch, whatever other processes' batches hold, and all gradients are there, some zero. `states` is for a teacher that is read row by row, which may be kept; none: batch by batch, as the student.
    `one_tower` is for a V_S that stays equal to V_T: its features are the teacher's too, and V_T is not asked.
    """

    def __init__(
        self, student: VisionLanguageModel, teacher: VisionLanguageModel | None, vocabulary: int
    ) -> None:
        super().__init__()
        self.student = student
        self._beside = (teacher.requires_grad_(False).eval() if teacher is not None else None,)
        self.vocabulary = vocabulary
        self.adapters = nn.ModuleDict()
        self.one_tower = False
        self.states: TeacherStates | None = None

    @property
    def teacher(self) -> VisionLanguageModel | None:
        """The frozen teacher, no part of this module: what trains, shares out or saves the student's weights never
        meets its."""
        return self._beside[0]

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> "Paths":
        """What moves or casts the student does so to the teacher."""
        if self.teacher is not None:
            self.teacher._apply(change, recurse)
        return super()._apply(change, recurse)

    def twin(self) -> "Paths":
        """A copy of the student and its adapters, beside the same teacher."""
        twin = Paths(
            type(self.student)(copy.deepcopy(self.student.model), self.student.inputs),
            self.teacher,
            self.vocabulary,
        )
        twin.adapters, twin.one_tower, twin.states = copy.deepcopy(self.adapters), self.one_tower, self.states
        twin.student.recomputed_parts = self.student.recomputed_parts
        return twin

    def recompute(self, what: Collection[str]) -> None:
        """Activation checkpointing of the layers of V_S (`vision`), of L_S (`student`), of L_T in the switch pass (`switch`)."""
        ours = {"vision": "vision", "student": "language"}
        self.student.recomputed_parts = frozenset(ours[name] for name in what if name in ours)
        if self.teacher is not None:  # its own pass takes no gradient and has none
            self.teacher.recomputed_parts = frozenset({"language"} if "switch" in what else ())

    def adapt(self, wanted: Collection[str], seed: int = 0) -> list[nn.Parameter]:
        """Draws new adapters for the wanted readings and returns their weights, to be trained.

        Where the student's features, tokens or heads are not as wide as the teacher's, a linear map to the teacher's
        width stands behind the student's (FitNets, 1412.6550). It belongs to the training, not to the student.
        """
        self.adapters = nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)
        for kind, ours in sorted(self.student.widths.items()):
            theirs = self.teacher.widths[kind] if self.teacher is not None else ours
            compared = {output_name("teacher", kind), output_name("switch", kind)} & set(wanted)
            if output_name("student", kind) in wanted and compared and ours != theirs:
                adapter = nn.Linear(ours, theirs, bias=False)
                nn.init.xavier_uniform_(adapter.weight, generator=generator)
                self.adapters[kind] = adapter
        return list(self.adapters.parameters())

    def forward(self, batch: Batch, wanted: Collection[str], keep: Tensor) -> dict[str, Any]:
        """The wanted readings, by the names that `output_name` gives them.

        `keep` is [B, T] bool with N true entries; logits are [N, vocabulary], in the order of `keep`'s rows.
        Positions are chosen before the head, so no [B, T, vocabulary] tensor exists.
        """
        asked = {path: _kinds(wanted, path) for path in PATHS}
        ours = asked["student"] or asked["switch"] or (asked["teacher"] and self.one_tower)
        features, images = self._encode(batch.images) if ours else ((), batch.images)
        readings: dict[str, PerImage] = {}
        if asked["student"]:
            given = self._read(self.student, features, images, batch, asked["student"], keep)
            given |= {k: apply(adapter, given[k]) for k, adapter in self.adapters.items() if k in given}
            readings |= _named("student", given)
        if asked["teacher"]:
            with torch.no_grad():
                readings |= _named("teacher", self._teach(features, batch, asked["teacher"], keep))
        if asked["switch"]:
            readings |= _named(
                "switch", self._read(self._required_teacher, features, images, batch, asked["switch"], keep)
            )
        return readings

    def heads(self, dtype: torch.dtype | None = None) -> Heads:
        """What each path's `hidden` becomes its logits with; `dtype` is what mixed precision computes that in."""
        speakers = {"student": self.student, "teacher": self.teacher, "switch": self.teacher}
        weights = {path: model.head for path, model in speakers.items() if model is not None}
        return Heads(weights, self.vocabulary, dtype)

    def _encode(self, images: Sequence[ImageInput]) -> tuple[PerImage, Sequence[ImageInput]]:
        """The student's features and their images; of a blank image where there is none but V_S or P_S is trained."""
        sighted = (
            p for part in ("vision", "projector") for m in self.student.parts[part] for p in m.parameters()
        )
        if not images and torch.is_grad_enabled() and any(p.requires_grad for p in sighted):
            images = [self.student.blank_image()]
        return self.student.encode(images), images

    def _teach(
        self, features: PerImage, batch: Batch, kinds: Collection[str], keep: Tensor
    ) -> dict[str, PerImage]:
        """The teacher's outputs; hidden states row by row where they may be kept, or have to equal kept ones."""
        teacher, states = self._required_teacher, self.states
        last = [] if states is None else [kind for kind in kinds if kind in ("hidden", "logits")]
        other = [kind for kind in kinds if kind not in last]
        given: dict[str, PerImage] = {}
        if other:
            own = apply(Tensor.detach, features) if self.one_tower else teacher.encode(batch.images)
            given = self._read(teacher, own, batch.images, batch, other, keep)
        if states is not None and last:
            given["hidden"] = hidden = states(batch, keep, self._teacher_states)
            if "logits" in last:
                given["logits"] = teacher.logits(hidden)[:, : self.vocabulary]
        return {kind: given[kind] for kind in kinds}

    def _teacher_states(self, batch: Batch, keep: Tensor) -> Tensor:
        """The teacher's hidden states [N, D]."""
        teacher = self._required_teacher
        tokens = teacher.project(teacher.encode(batch.images), batch.images)
        return teacher.hidden_states(batch, tokens, keep)

    @property
    def _required_teacher(self) -> VisionLanguageModel:
        """The teacher, where something that is wanted is computed with it."""
        if self.teacher is None:
            raise ValueError("these paths have no teacher")
        return self.teacher

    def _read(
        self,
        reader: VisionLanguageModel,
        features: PerImage,
        images: Sequence[ImageInput],
        batch: Batch,
        kinds: Collection[str],
        keep: Tensor,
    ) -> dict[str, PerImage]:
        """What one model's P and L make of features, no further than the wanted kinds need."""
        given: dict[str, PerImage] = {"features": features}
        if set(kinds) - {"features"}:
            given["tokens"] = reader.project(features, images)
        if {"attention", "focus"} & set(kinds):
            given["attention"] = reader.attention(batch, given["tokens"])
            given["focus"] = apply(lambda heads: heads.mean(-1), given["attention"])
        if {"logits", "hidden"} & set(kinds):
            given["hidden"] = hidden = reader.hidden_states(batch, given["tokens"], keep)
            if "logits" in kinds:
                given["logits"] = reader.logits(hidden)[:, : self.vocabulary]
        of_images = slice(len(batch.images))  # without a blank one
        return {k: given[k] if k in ("logits", "hidden") else given[k][of_images] for k in kinds}


def _kinds(wanted: Collection[str], path: str) -> list[str]:
    """What is wanted of one path."""
    parted = (name.partition(".") for name in sorted(wanted))
    return [kind or "logits" for of, _, kind in parted if of == path]


def _named(path: str, given: dict[str, PerImage]) -> dict[str, PerImage]:
    return {output_name(path, kind): value for kind, value in given.items()}
