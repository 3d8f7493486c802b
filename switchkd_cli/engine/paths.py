"""The three logits paths of Switch-KD as one module (paper Eqs. 4-6, Algorithm 1), their outputs, and the switch's adapter."""

import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import cycle
from operator import call
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from switchkd_cli.engine.batch import Batch, ImageInput, PerImage, apply, together
from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.teacher_states import TeacherStates
from switchkd_cli.engine.token_map import TokenMap
from switchkd_cli.report.grouping import grouped

PATHS = ("student", "teacher", "switch")

Seen = tuple[PerImage, Sequence[ImageInput]]
"""A vision tower's features of images, and the images."""


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
    | mapped    | the same, in the teacher's width              | [N, width of L]    |
    | features  | V's features, before the projector            | [P, F, width of V] |
    | tokens    | P's visual tokens, before the language model  | [P, M, width of L] |
    | attention | L's first layer, from text to visual tokens   | [P, T, M, heads]   |
    | focus     | the mean of `attention` over heads            | [P, T, M]          |
    | attentions | the same of every layer                      | [P, T, M, layers]  |

    Only the requested outputs are computed: features alone need no language model. Logits are cut to `vocabulary`
    columns, the ids that both tokenizers share, so that padding columns of a wider head never enter a loss. With `tokens`
    each model's columns are its own tokens. Teacher and switch read `Batch.teacher` where the teacher has tokens of its own.

    Where V_S or P_S is trained, a batch without images gets a blank one, which no token reads: every module of the
    student runs on every batch, whatever the batches of other processes hold, and every gradient exists, some zero.
    `states` computes the teacher's hidden states example by example, so that they can be cached; None: batch by batch.
    `one_tower` is set where V_S stays equal to V_T: the student's features are the teacher's too, and V_T doesn't run.
    """

    def __init__(
        self,
        student: VisionLanguageModel,
        teacher: VisionLanguageModel | None,
        vocabulary: int,
        tokens: TokenMap | None = None,
        *,
        adapter: nn.Module | None = None,
    ) -> None:
        """`adapter`: what V_S's features go through in the switch, in front of P_T; it is kept from stage to stage."""
        super().__init__()
        self.tokens = tokens
        of_teacher = vocabulary if tokens is None else len(tokens.places[1])
        self.columns = {"student": vocabulary, "teacher": of_teacher, "switch": of_teacher}
        self.student = student
        self.switch_adapter = adapter
        self._untracked = (teacher.requires_grad_(False).eval() if teacher is not None else None,)
        self.vocabulary = vocabulary
        self.adapters = nn.ModuleDict()
        self.one_tower = False
        self.states: TeacherStates | None = None

    @property
    def teacher(self) -> VisionLanguageModel | None:
        """The frozen teacher. It is no submodule, so that training, sharding and saving see only the student's weights."""
        return self._untracked[0]

    def used_parameters(self, part: str) -> list[nn.Parameter]:
        """Return the parameters of a part that a stage's `train` names: the student's, or the switch's adapter."""
        if part in self.student.parts:
            return list(self.student.used_parameters(part).values())
        assert self.switch_adapter is not None, f"these paths have no {part}"
        return list(self.switch_adapter.parameters())

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the teacher together with the student."""
        if self.teacher is not None:
            self.teacher._apply(change, recurse)
        return super()._apply(change, recurse)

    def twin(self) -> Self:
        """Return paths with a copy of the student and its adapters; the teacher, processor and states are the same."""
        shared = self._untracked, self.student.inputs, self.states, self.tokens
        return copy.deepcopy(self, {id(one): one for one in shared})

    def recompute(self, layers: Collection[str]) -> None:
        """Turn on activation checkpointing for layers of V_S (`vision`), L_S (`student`), L_T in the switch path (`switch`)."""
        student_parts = {"vision": "vision", "student": "language"}
        self.student.recomputed_parts = frozenset(student_parts[name] for name in layers if name in student_parts)
        if self.teacher is not None:  # the teacher path takes no gradient and needs no checkpointing
            self.teacher.recomputed_parts = frozenset({"language"} if "switch" in layers else ())

    def adapt(self, names: Collection[str], seed: int = 0) -> list[nn.Parameter]:
        """Draw new adapters for the outputs of these names and return their weights, to be trained.

        Where the student's features, tokens, heads or `mapped` states are not as wide as the teacher's, a linear layer maps them
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

        `keep` is [B, T] bool with N true entries; logits are [N, vocabulary], in the order of `keep`'s rows. Of a batch
        with the teacher's own tokens it is a mask of both: `Batch.read_by`.
        Positions are chosen before the head, so no [B, T, vocabulary] tensor exists.
        """
        parts = (name.partition(".") for name in sorted(names))
        kinds = grouped((path, kind or "logits") for path, _, kind in parts)
        seen: Seen = (), ()
        if "student" in kinds or "switch" in kinds or ("teacher" in kinds and self.one_tower):
            seen = self._encode(batch.images)
        outputs: dict[str, PerImage] = {}
        for path in (path for path in PATHS if path in kinds):
            with torch.set_grad_enabled(torch.is_grad_enabled() and path != "teacher"):
                outputs |= self._read(path, kinds[path], *batch.read_by(path, keep), seen)
        return outputs

    def heads(self, dtype: torch.dtype | None = None) -> Heads:
        """Return the LM head of each path, which turns `hidden` into logits; `dtype` is the one of mixed precision."""
        models = {"student": self.student, "teacher": self.teacher, "switch": self.teacher}
        known = {path: model for path, model in models.items() if model is not None}
        weights, caps = ({path: getattr(model, of) for path, model in known.items()} for of in ("head", "cap"))
        return Heads(weights, self.columns, dtype, caps)

    def _encode(self, images: Sequence[ImageInput]) -> Seen:
        """Return the student's features and their images: one blank image where there is none and what reads it is trained."""
        modules = [*self.student.parts["vision"], *self.student.parts["projector"], self.switch_adapter]
        parameters = (p for module in modules if module is not None for p in module.parameters())
        if not images and any(p.requires_grad for p in parameters):
            images = [self.student.blank_image()]
        return self.student.encode(images), images

    def teacher_hidden_states(self, batch: Batch, keep: Tensor) -> Tensor:
        """Return the teacher's hidden states [N, D]."""
        teacher = self.teacher
        assert teacher is not None
        tokens = teacher.project(teacher.encode(batch.images), batch.images)
        return teacher.hidden_states(batch, tokens, keep)

    def _read(self, path: str, kinds: Collection[str], batch: Batch, keep: Tensor, seen: Seen) -> dict[str, PerImage]:
        """Return the outputs of one path by name, for what V_S has seen; it stops after the last step that `kinds` need."""
        model = self.student if path == "student" else self.teacher
        assert model is not None, "these paths have no teacher"
        states = self.states if path == "teacher" else None
        of_text = {"hidden", "mapped", "logits"} & set(kinds)
        from_images = set(kinds) if states is None else set(kinds) - of_text
        values: dict[str, PerImage] = {}
        if from_images:
            features, images = seen
            if path == "teacher" and self.one_tower:
                features = apply(Tensor.detach, features)
            elif path == "teacher":
                features, images = model.encode(batch.images), batch.images
            elif path == "switch" and self.switch_adapter is not None:
                theirs = batch.images or [model.blank_image()]  # the teacher may see images of its own
                features = self.switch_adapter(features, images, theirs)
                images = theirs if len(features) else ()
            values["features"] = features
        if from_images - {"features"}:
            values["tokens"] = model.project(features, images)
        if from_images & {"attention", "focus"}:
            values["attention"] = model.attention(batch, values["tokens"])
            values["focus"] = apply(lambda heads: heads.mean(-1), values["attention"])
        if "attentions" in from_images:
            values["attentions"] = model.attentions(batch, values["tokens"])
        if of_text:
            if states is None:
                hidden = model.hidden_states(batch, values["tokens"], keep)
            else:
                hidden = states(batch, keep, self.teacher_hidden_states)
            values |= {"hidden": hidden, "mapped": hidden}
            if "logits" in kinds:
                values["logits"] = model.logits(hidden)[:, : self.columns[path]]
        real = slice(len(batch.images))  # without the blank image
        values = {kind: values[kind] if kind in of_text else values[kind][real] for kind in kinds}
        if path == "student":
            values |= {kind: apply(adapter, values[kind]) for kind, adapter in self.adapters.items() if kind in values}
        return {output_name(path, kind): value for kind, value in values.items()}


FILE = "switch_adapter.safetensors"
"""Its weights in the output of a stage that trained it. The exported student never has this file."""


class FeatureAdapter(nn.Module):
    """A linear map with bias for each level of features, then a bilinear resize where the grids differ.

    A map starts as an isometry with bias 0, which keeps the features' lengths and angles as far as the widths allow: between
    equal widths it is the identity, so that the switch starts as it is without an adapter; else it is drawn from the seed.
    The map comes first as the smaller grid is usually the student's; both orders give the same features, to rounding.
    Between towers that cut images differently, what is resized is the student's features of the whole image.
    """

    def __init__(
        self,
        ours: int,
        theirs: int,
        levels: int = 1,
        sides: tuple[int, int] = (1, 1),
        seed: int = 0,
        towers: Sequence[Blueprint] = (),
    ) -> None:
        """From width `ours` to `theirs`, and from a grid of the first of `sides` to one of the second.

        `towers`: of student and teacher, whose features are pictures of whole images (`Blueprint.as_picture`).
        """
        super().__init__()
        self.width, self.sides = ours, sides
        self.layouts = [partial(tower.inputs.seam.layout, tower.config) for tower in towers]
        self.whole = towers[0].inputs.seam.whole if towers else 0
        maps = [nn.utils.skip_init(nn.Linear, ours, theirs) for _ in range(levels)]
        self.maps = nn.ModuleList(maps)
        generator = torch.Generator().manual_seed(seed)
        for level in maps:
            nn.init.zeros_(level.bias)
            if ours == theirs:
                nn.init.eye_(level.weight)
            else:
                nn.init.orthogonal_(level.weight, generator=generator)

    @classmethod
    def between(cls, student: Blueprint, teacher: Blueprint, seed: int, *, as_pictures: bool = False) -> Self:
        """Return the adapter of two models that fit, `as_pictures`: as far as features of whole images go."""
        ours, theirs = student.feature_map, teacher.feature_map
        towers = (student, teacher) if as_pictures else ()
        return cls(ours.width, theirs.width, theirs.levels, (ours.side, theirs.side), seed, towers)

    def forward(
        self, features: PerImage, images: Sequence[ImageInput] = (), theirs: Sequence[ImageInput] = ()
    ) -> PerImage:
        """V_S's features [P, F, width x levels] -> V_T's [P, F', width x levels], or P tensors; those of no image as they are.

        `images`, `theirs`: the images as student and teacher see them.
        """
        if self.layouts and len(features):
            return together(list(map(self._picture, features, images, theirs)))
        return apply(self._adapted, features) if len(features) else features

    def _picture(self, features: Tensor, image: ImageInput, theirs: ImageInput) -> Tensor:
        """V_S's features [F, width x levels] of an image -> those of all of it where V_T has them: [F', width x levels]."""
        (rows, columns, square), (height, width, block) = map(call, self.layouts, (image, theirs))
        whole = self._mapped(features.unflatten(0, (-1, rows * columns))[self.whole])
        picture = whole.view(rows // square, columns // square, square, square, -1).permute(4, 0, 2, 1, 3)
        resized = interpolate(picture.reshape(1, -1, rows, columns), (height, width), mode="bilinear")[0]
        squares = resized.view(-1, height // block, block, width // block, block)
        return squares.permute(1, 3, 2, 4, 0).flatten(0, 3)

    def _mapped(self, features: Tensor) -> Tensor:
        """Return the features in V_T's width: a map for each of its levels, which all read V_S's where that has but one."""
        levels = zip(self.maps, cycle(features.split(self.width, -1)), strict=False)
        return torch.cat([level(part) for level, part in levels], -1)

    def _adapted(self, features: Tensor) -> Tensor:
        adapted = self._mapped(features)
        ours, theirs = self.sides
        if ours == theirs:
            return adapted
        grids = adapted.unflatten(-2, (-1, ours, ours))  # [..., tiles, rows, columns, D]
        resized = interpolate(grids.flatten(0, -4).movedim(-1, 1), (theirs, theirs), mode="bilinear")
        return resized.movedim(1, -1).reshape(*adapted.shape[:-2], -1, adapted.shape[-1])
