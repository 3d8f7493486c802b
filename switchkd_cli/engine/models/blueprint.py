"""A model before its weights are read: its parts must fit together, and with a student's for the switch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from transformers import PretrainedConfig, PreTrainedModel

from switchkd_cli.engine.hub import as_user_error
from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.engine.models.processors import EQUAL, NEAR, normalisation, probes
from switchkd_cli.engine.models.seams import GRID
from switchkd_cli.engine.models.shape import features_of, image_tokens_of, output_widths, patch_grid, vision_width
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.errors import UserError
from switchkd_cli.package_data import read_yaml
from switchkd_cli.planning.estimate import PairFact

_FIT = read_yaml(__file__, "fit.yaml")
HINTS: Mapping[str, str] = _FIT["hints"]
UNLIKE = {name: (verdict, HINTS[hint]) for name, (verdict, hint) in _FIT["unlike"].items()}


class FeatureMap(NamedTuple):
    """V's features of an image or tile: the width of a level, the number of levels, the grid's side; `square`: all of its places."""

    width: int
    levels: int
    side: int
    square: bool


@dataclass(frozen=True)
class Blueprint:
    """All of a model except its weights, which `weights` reads or draws in a given dtype.

    `ends`: the ids that end an answer, by the model's files. `notes`: decisions made while reading that the files don't
    settle.
    """

    config: PretrainedConfig
    inputs: InputProcessor
    weights: Callable[[str], PreTrainedModel] = field(repr=False)
    notes: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()

    def build(self, dtype: str = "float32") -> VisionLanguageModel:
        """Build the model. Raises UserError for weights that don't fit the config."""
        model: Any = self.weights(dtype)
        if self.ends:
            model.generation_config.eos_token_id = list(self.ends) if len(self.ends) > 1 else self.ends[0]
        return self.wrap(model)

    @property
    def vocabulary(self) -> int:
        """Number of columns of the head."""
        return self.config.get_text_config().vocab_size

    @property
    def image_processor(self) -> Any:
        return self.inputs.processor.image_processor

    @property
    def kind(self) -> str:
        """The family whose projectors can read one another's towers' features, if their sizes agree."""
        return self.config.model_type

    def wrap(self, model: PreTrainedModel) -> VisionLanguageModel:
        """Return the transformers model as V, P and L."""
        return VisionLanguageModel(model, self.inputs)

    def problems(self) -> Iterator[str]:
        """Yield where the config, the tokenizer and the image processor don't fit together."""
        layer = getattr(self.config, "vision_feature_layer", -1)
        layers = self.config.vision_config.num_hidden_layers if self.inputs.seam.at_layer else 1
        if not isinstance(layer, int) or not -layers <= layer <= -1:  # in a family that has V's output read, the last
            yield f"feature_layer is counted from the end, -1 to -{layers}, got {layer}"
        if (scaling := getattr(self.config.get_text_config(), "logits_scaling", 1)) != 1:
            yield f"its config has logits_scaling {scaling}, which is not supported"
        try:
            yield from self._image_problems()
        except UserError as error:
            yield from error.problems

    def _image_problems(self) -> Iterator[str]:
        """Yield where what the processor makes of an image doesn't fit. Raises UserError where it can't prepare one."""
        with as_user_error("the processor can't prepare an image"):
            text = self.inputs.usual.text
        if self.config.image_token_id not in self.inputs.tokenizer(text, add_special_tokens=False)["input_ids"]:
            yield f"the processor writes no token {self.config.image_token_id} for an image, the config's image token"

    @property
    def feature_map(self) -> FeatureMap:
        side, seam = patch_grid(self.config)[1], self.inputs.seam
        square = seam.square and features_of(self.config) == side**2
        return FeatureMap(vision_width(self.config), seam.levels(self.config), side, square)

    @property
    def widths(self) -> dict[str, int]:
        """See `output_widths`."""
        return output_widths(self.config, self.inputs.seam.levels(self.config))

    def as_picture(self, *, alone: bool = False) -> bool:
        """Return whether V's features of an image, or of the tile that shows all of it, are a picture of it (`Seam.layout`).

        `alone`: and are there no others.
        """
        images = [self.inputs.usual, *self.inputs.prepare(probes() if alone else [])]
        one_size = len({image.inputs["pixel_values"].shape for image in images}) == 1
        square = self.feature_map.side**2 == features_of(self.config) and not self.inputs.seam.places
        return GRID in self.inputs.usual.inputs or square and one_size

    def _values(self) -> list[Any]:
        """Return this model's values of what `UNLIKE` names."""
        own, counts = self.feature_map, (features_of(self.config), image_tokens_of(self.config))
        grid = f"{own.side} x {own.side}"
        sizes = own.width, own.levels, patch_grid(self.config)[0], grid, *counts
        return [self.kind, *sizes, normalisation(self.image_processor)]

    def facts(self, student: "Blueprint", users: Sequence[str] = ()) -> Iterator[PairFact]:
        """Yield each property of this teacher's vision and of a student's. `users`: terms that need equal feature layers.

        Every tower reads its grid row by row, so equal grids and selections give features in the same order.
        """
        seen, read = student.feature_map, self.feature_map
        resizes = seen.square and read.square and seen.side != read.side
        unlike = UNLIKE | (dict.fromkeys(_FIT["resized"], ("adapter", HINTS["adapter"])) if resizes else {})
        both = zip(unlike.items(), student._values(), self._values(), strict=True)
        facts = [PairFact.of(name, *values, *otherwise) for (name, otherwise), *values in both]
        yield from facts
        if all(fact.verdict in ("yes", "adapter") for fact in facts):
            yield self._images_fact(student)
        ours, theirs = (getattr(model.config, "vision_feature_layer", -1) for model in (student, self))
        layer = PairFact.of("feature layer", ours, theirs, "impossible" if users else "yes", HINTS["layer"])
        why = f": {', '.join(users)} can't compare the two" if layer.difference and users else ""
        yield replace(layer, difference=layer.difference + why)

    def _images_fact(self, student: "Blueprint") -> PairFact:
        """Compare `probes` as both prepare them, by the largest difference, as a share of their range.

        It is 1 where they are of another size, or written otherwise in the text though their grids are equal.
        """
        ours, theirs = (type(model.image_processor).__name__.removesuffix("Pil") for model in (student, self))
        fact = PairFact("image preparation", ours, theirs)
        apart, same_grid = 0.0, student.feature_map.side == self.feature_map.side
        for seen, read in zip(*(model.inputs.prepare(probes()) for model in (student, self)), strict=True):
            (pixels, others) = (image.inputs["pixel_values"] for image in (seen, read))
            if pixels.shape != others.shape or (same_grid and seen.text != read.text):
                apart = 1.0
            else:
                apart = max(apart, (pixels - others).abs().max().item() / ((pixels.max() - pixels.min()).item() or 1.0))
        if apart < EQUAL:
            return fact
        students, teachers = (model.image_processor.to_dict() for model in (student, self))
        differing = [name for name in students | teachers if students.get(name) != teachers.get(name)]
        each = (f"{name} is {teachers.get(name)}, the student's is {students.get(name)}" for name in differing)
        how = f"nearly alike ({apart:.1%} apart)" if apart <= NEAR else f"differently ({apart:.0%} apart)"
        fact = replace(fact, difference=f"teacher: images are prepared {how}: {'; '.join(each)}")
        return fact if apart <= NEAR else replace(fact, verdict="impossible", hint=HINTS["images"])


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the number of positions that L supports, rotary scaling included; None: not in the config."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(limit, int(original * factor)) if limit and original and factor else limit
