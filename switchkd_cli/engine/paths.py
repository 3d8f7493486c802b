"""The paths of a recipe as one module, Switch-KD's three (paper Eqs. 4-6, Algorithm 1) among them, and the switch's adapter."""

import copy
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
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
from switchkd_cli.recipe.schema import BUILT_IN, LEARNING, PathSpec
from switchkd_cli.report.grouping import grouped


def output_name(path: str, kind: str = "logits") -> str:
    """Return the name of a path's output: `teacher` for its logits, `teacher.tokens` for its visual tokens."""
    return path if kind == "logits" else f"{path}.{kind}"


Seen = tuple[PerImage, Sequence[ImageInput]]
"""A vision tower's features of images, and the images."""


Shared = dict[Hashable, Any]
"""What paths of one forward pass have in common, by how it is computed."""


def _map_of(path: str) -> str:
    """Return the name of the adapter in front of a path's own head."""
    return f"head of {path}"


def once(shared: Shared, way: Hashable, compute: Callable[[], Any]) -> Any:
    """Return what was computed in this way before, or else compute it."""
    if way not in shared:
        shared[way] = compute()
    return shared[way]


class Paths(nn.Module):
    """Compute the logits of a batch along named paths (`PathSpec`) and, on request, what they are computed from.

    | path    | formula              | gradient reaches            |
    |---------|----------------------|-----------------------------|
    | student | L_S(P_S(V_S(x)))     | V_S, P_S, L_S               |
    | teacher | L_T(P_T(V_T(x)))     | nothing                     |
    | switch  | L_T(P_T(V_S(x)))     | V_S, through frozen P_T, L_T |
    | reverse | L_S(P_S(V_T(x)))     | P_S, L_S                    |

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

    Only the requested outputs are computed: features alone need no language model. What several paths share is computed
    once. Logits are cut to `vocabulary` columns, the ids that both tokenizers share, so that padding columns of a wider head
    never enter a loss. With `tokens` each model's columns are its own tokens. A path reads `Batch.reading` of its name: the
    teacher's language model its own tokens, where it has any.

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
        teachers: Mapping[str, VisionLanguageModel] = {},
        known: Mapping[str, PathSpec] = BUILT_IN,
    ) -> None:
        """`adapter`: what V_S's features go through in the switch, in front of P_T; it is kept from stage to stage.

        `teachers`: further frozen models, by name. `known`: the paths, by name.
        """
        super().__init__()
        self.tokens, self.known = tokens, known
        self.student = student
        self.switch_adapter = adapter
        self.frozen: dict[str, VisionLanguageModel] = {**({} if teacher is None else {"teacher": teacher}), **teachers}
        """The teachers. They are no submodules, so that training, sharding and saving see only the student's weights."""
        for model in self.frozen.values():
            model.requires_grad_(False).eval()
        self.vocabulary = vocabulary
        self.adapters = nn.ModuleDict()
        self.one_tower = False
        self.states: TeacherStates | None = None

    @property
    def teacher(self) -> VisionLanguageModel | None:
        return self.frozen.get("teacher")

    @property
    def columns(self) -> dict[str, int]:
        """The number of columns of each path's logits."""
        own = self.vocabulary if self.tokens is None else len(self.tokens.places[1])
        return {name: self.vocabulary if path.language in LEARNING else own for name, path in self.known.items()}

    def model(self, name: str) -> VisionLanguageModel:
        """Return the model of this name."""
        assert name == "student" or name in self.frozen, f"these paths have no {name}"
        return self.student if name == "student" else self.frozen[name]

    def used_parameters(self, part: str) -> list[nn.Parameter]:
        """Return the parameters of a part that a stage's `train` names: the student's, or the switch's adapter."""
        if part in self.student.parts:
            return list(self.student.used_parameters(part).values())
        assert self.switch_adapter is not None, f"these paths have no {part}"
        return list(self.switch_adapter.parameters())

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the frozen models together with the student."""
        for model in self.frozen.values():
            model._apply(change, recurse)
        return super()._apply(change, recurse)

    def twin(self) -> Self:
        """Return paths with a copy of the student and its adapters; frozen models, processor and states are the same."""
        shared = self.frozen, self.student.inputs, self.states, self.tokens, self.known
        return copy.deepcopy(self, {id(one): one for one in shared})

    def remember_student(self) -> None:
        """Keep a frozen copy of the student as it is now, as the model `before`."""
        inputs = self.student.inputs
        before = copy.deepcopy(self.student, {id(inputs): inputs})
        self.frozen["before"] = before.requires_grad_(False).eval()

    def recompute(self, layers: Collection[str]) -> None:
        """Turn on activation checkpointing for layers of V_S (`vision`), L_S (`student`), L_T in the switch path (`switch`)."""
        student_parts = {"vision": "vision", "student": "language"}
        self.student.recomputed_parts = frozenset(student_parts[name] for name in layers if name in student_parts)
        for model in self.frozen.values():  # paths without gradient need no checkpointing
            model.recomputed_parts = frozenset({"language"} if "switch" in layers else ())

    def adapt(self, names: Collection[str], seed: int = 0) -> list[nn.Parameter]:
        """Draw new adapters for the outputs of these names and return their weights, to be trained.

        Where the student's features, tokens, heads or `mapped` states are not as wide as the teacher's, a linear layer maps them
        to the teacher's width (FitNets, 1412.6550). It belongs to the training, not to the student.
        """
        self.adapters = nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)

        def draw(name: str, ours: int, theirs: int) -> None:
            self.adapters[name] = adapter = nn.Linear(ours, theirs, bias=False)
            nn.init.xavier_uniform_(adapter.weight, generator=generator)

        for kind, ours in sorted(self.student.widths.items()):
            sources = {self._source(of, kind) for path, of in self.known.items() if output_name(path, kind) in names}
            widths = {self.model(source).widths[kind] for source in sources.difference(LEARNING)} - {ours}
            if "student" in sources and widths:
                draw(kind, ours, widths.pop())
        for name, path in self.known.items():
            if path.head and {output_name(name, kind) for kind in ("logits", "hidden", "mapped")} & set(names):
                draw(_map_of(name), *(self.model(of).widths["mapped"] for of in (path.language, path.head)))
        return list(self.adapters.parameters())

    def _source(self, path: PathSpec, kind: str) -> str:
        return path.source(kind, adapted=self.switch_adapter is not None)

    def forward(self, batch: Batch, names: Collection[str], keep: Tensor) -> dict[str, Any]:
        """Return the outputs of these names (see `output_name`).

        `keep` is [B, T] bool with N true entries; logits are [N, vocabulary], in the order of `keep`'s rows. Of a batch
        with the teacher's own tokens it is a mask of both: `Batch.read_by`.
        Positions are chosen before the head, so no [B, T, vocabulary] tensor exists.
        """
        parts = (name.partition(".") for name in sorted(names))
        kinds = grouped((path, kind or "logits") for path, _, kind in parts)
        outputs: dict[str, PerImage] = {}
        shared: Shared = {}
        for name, path in self.known.items():
            if name in kinds:
                with torch.set_grad_enabled(torch.is_grad_enabled() and "student" in path.models):
                    outputs |= self._read(name, path, kinds[name], batch, keep, shared)
        return outputs

    def heads(self, dtype: torch.dtype | None = None) -> Heads:
        """Return the LM head of each path, which turns `hidden` into logits; `dtype` is the one of mixed precision."""
        models = {"student": self.student, **self.frozen}
        known = {name: models[path.speaks] for name, path in self.known.items() if path.speaks in models}
        weights, caps = ({path: getattr(model, of) for path, model in known.items()} for of in ("head", "cap"))
        return Heads(weights, self.columns, dtype, caps)

    def teacher_hidden_states(self, batch: Batch, keep: Tensor) -> Tensor:
        """Return the teacher's hidden states [N, D]."""
        teacher = self.teacher
        assert teacher is not None
        tokens = teacher.project(teacher.encode(batch.images), batch.images)
        return teacher.hidden_states(batch, tokens, keep)

    def _read(
        self, name: str, path: PathSpec, kinds: Collection[str], batch: Batch, keep: Tensor, shared: Shared
    ) -> dict[str, PerImage]:
        """Return the outputs of one path by name; it stops after the last step that `kinds` need."""
        read, mask = batch.read_by(name, keep)
        projector, language = self.model(path.projector), self.model(path.language)
        states = self.states if path == self.known["teacher"] else None
        of_text = {"hidden", "mapped", "logits"} & set(kinds)
        from_images = set(kinds) if states is None else set(kinds) - of_text
        values: dict[str, PerImage] = {}

        def of_tokens() -> Tensor:
            if states is not None:
                return states(read, mask, self.teacher_hidden_states)
            return language.hidden_states(read, values["tokens"], mask)

        if from_images:
            values["features"], images = self._features(path, batch, shared)
        if from_images - {"features"}:
            shown = path.vision, path.projector, path.images
            values["tokens"] = once(shared, shown, lambda: projector.project(values["features"], images))
        if from_images & {"attention", "focus"}:
            values["attention"] = once(shared, ("attention", path), lambda: language.attention(read, values["tokens"]))
            values["focus"] = apply(lambda heads: heads.mean(-1), values["attention"])
        if "attentions" in from_images:
            values["attentions"] = once(shared, ("layers", path), lambda: language.attentions(read, values["tokens"]))
        if of_text:
            hidden: Tensor = once(shared, path.model_copy(update={"head": None}), of_tokens)
            if path.head:
                hidden = self.adapters[_map_of(name)](hidden)
            values |= {"hidden": hidden, "mapped": hidden}
            if "logits" in kinds:
                values["logits"] = self.model(path.speaks).logits(hidden)[:, : self.columns[name]]
        real = slice(len(read.images))  # without the blank image
        values = {kind: values[kind] if kind in of_text else values[kind][real] for kind in kinds}
        ours = [kind for kind in self.adapters if kind in values and self._source(path, kind) == "student"]
        values |= {kind: apply(self.adapters[kind], values[kind]) for kind in ours}
        return {output_name(name, kind): value for kind, value in values.items()}

    def _features(self, path: PathSpec, batch: Batch, shared: Shared) -> Seen:
        """Return V's features as P reads them, and their images.

        It is one blank image where there is none and a part of the student that sees or reads it is trained.
        """
        twin = self.one_tower and path.vision == "teacher" and _one_preparation(batch)
        sees = "student" if twin else path.vision
        modules = [*self.student.parts["vision"], *self.student.parts["projector"], self.switch_adapter]
        parameters = (p for module in modules if module is not None for p in module.parameters())
        of_student = "student" in (sees, path.projector)
        blank = not batch.images and of_student and any(p.requires_grad for p in parameters)

        def images_of(model: str) -> Sequence[ImageInput]:
            way, read = ("images", model, path.images), batch.reading(model)
            given = once(shared, way, lambda: read.shown(path.images, batch.mixture))
            return [self.model(model).blank_image()] if blank else given

        images = images_of(sees)
        features = once(shared, (sees, path.images, blank), lambda: self.model(sees).encode(images))
        if twin:
            features = apply(Tensor.detach, features)
        elif path.is_switch and (adapter := self.switch_adapter) is not None and len(features):
            seen, images = images, images_of(path.projector)  # the teacher may see images of its own
            adapted = "adapted", sees, path.projector, path.images
            return once(shared, adapted, lambda: adapter(features, seen, images)), images
        return features, images


def _one_preparation(batch: Batch) -> bool:
    """Whether student and teacher see the same images: where they read unlike tokens, each has its own processor's."""
    ours, theirs = (batch.reading(model).images for model in ("student", "teacher"))
    alike = len(ours) == len(theirs) and all(a.keys() == b.keys() for a, b in zip(ours, theirs, strict=True))
    return ours is theirs or (
        alike and all(torch.equal(a[k], b[k]) for a, b in zip(ours, theirs, strict=True) for k in a)
    )


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
