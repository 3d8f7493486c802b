"""What the engine asks of a family of models: how it is read, how examples are prepared, and V, P and L one by one.

A family is one file (or a few), a line of the registry, and a test class that inherits tests/support/family.py's.
Nothing outside `engine/models` knows one family from another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from switchkd_cli.engine.batch import Batch, ImageInput
from switchkd_cli.engine.hub import Stored
from switchkd_cli.engine.inputs import InputProcessor, PreparedImage
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.per_image import PerImage
from switchkd_cli.recipe.schema import Parts

Difference = tuple[str, str]
"""What keeps a student's features from a teacher's projector, and a hint what to do about it."""


Published = Callable[[str, str], Mapping[str, Any]]
"""From a part (`vision`, `language`) and a model's name to its published `config` and `tokens`; empty: not known."""


@dataclass(frozen=True)
class ProjectedImage:
    """A prepared image with its visual tokens [M, width of L]."""

    prepared: PreparedImage
    tokens: Tensor

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + sum(value.nbytes for value in self.prepared.inputs.values())


class VisionLanguageModel(nn.Module, ABC):
    """A model as vision encoder V, projector P and language model L (head included).

    `model` is a plain transformers model, so that what is saved loads without this package. The layers of the parts
    in `recomputed_parts` ("vision", "language") keep only their inputs for the backward pass, which computes them again.
    """

    def __init__(self, model: PreTrainedModel, inputs: InputProcessor) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.recomputed_parts: frozenset[str] = frozenset()

    @property
    @abstractmethod
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """The modules of `vision`, `projector` and `language`, the names that a recipe's `train` may hold."""

    @abstractmethod
    def used_parameters(self, part: str) -> dict[str, nn.Parameter]:
        """The part's parameters that a forward pass uses, by name: those that training the part trains."""

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """The last axis of `features`, `tokens` and `attention`."""

    @property
    def head(self) -> Tensor:
        """The weights [V, D] of L's head, which has no bias."""
        return self.model.get_output_embeddings().weight

    @abstractmethod
    def blank_image(self) -> ImageInput:
        """An image without content. V runs on it where it is trained and a batch has no image."""

    @abstractmethod
    def encode(self, images: Sequence[ImageInput]) -> PerImage:
        """V: P images -> features [P, F, width of V], or P tensors [F_p, width of V]."""

    @abstractmethod
    def project(self, features: PerImage, images: Sequence[ImageInput] = ()) -> PerImage:
        """P: the features of those images -> visual tokens [P, M, width of L], or P tensors [M_p, width of L]."""

    @abstractmethod
    def hidden_states(self, batch: Batch, tokens: PerImage, keep: Tensor) -> Tensor:
        """L without its head: the batch's text and visual tokens -> [N, D] at the N positions of `keep` [B, T]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """L's head: hidden states [N, D] -> logits [N, V]."""
        return self.model.get_output_embeddings()(hidden)

    @abstractmethod
    def attention(self, batch: Batch, tokens: PerImage) -> PerImage:
        """L's first layer: attention of each text token to each visual token, [P, T, M, heads]; 0 where there is none."""

    @abstractmethod
    def mean_attention(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """For a figure, of a batch of one example: attention [T, T], its mean over layers and heads; logits [T, V]."""

    @abstractmethod
    def same_vision(self, other: VisionLanguageModel) -> bool:
        """Whether both make the same features of every image."""

    @abstractmethod
    def generate(
        self, texts: Sequence[str], images: Sequence[Sequence[ProjectedImage]], generation: GenerationConfig
    ) -> tuple[list[int], Tensor]:
        """Answers to B texts, each with its images: the texts' lengths in tokens, and the new ids [B, at most the limit]."""

    @abstractmethod
    def save(
        self, folder: Path, *, template: str | None = None, end: str | None = None, weights: bool = True
    ) -> list[str]:
        """Write a folder, laid out as the family's published checkpoints are. Returns what was left out, in words.

        `template` is the conversation (Jinja) that the model was taught and `end` the token that ends its answers;
        without them those of its processor stay. The model itself is left as it is. Without `weights`, one tensor of
        them is written: to see whether all the rest can be.
        """


@dataclass(frozen=True)
class Blueprint(ABC):
    """All of a model except its weights, which `weights` reads or draws in a given dtype.

    `ends` are the ids that end what the model generates, as far as its files say. `notes` says what was decided
    while reading that the files themselves don't say.
    """

    config: PretrainedConfig
    inputs: InputProcessor
    weights: Callable[[str], PreTrainedModel] = field(repr=False)
    notes: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()

    def build(self, dtype: str = "float32") -> VisionLanguageModel:
        """The model itself. Raises UserError for weights that are not the config's."""
        model = self.weights(dtype)
        if self.ends:
            model.generation_config.eos_token_id = list(self.ends) if len(self.ends) > 1 else self.ends[0]
        return self.wrap(model)

    @abstractmethod
    def wrap(self, model: PreTrainedModel) -> VisionLanguageModel:
        """The model as V, P and L."""

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """Where the config, the tokenizer and the image processor don't fit together."""

    @abstractmethod
    def vision_differences(self, student: Blueprint) -> Iterator[Difference]:
        """Why this model's projector can't read the student's features."""

    @abstractmethod
    def layer_difference(self, student: Blueprint) -> Difference | None:
        """The layers of V at which both read their features, where these differ."""

    @abstractmethod
    def image_note(self, student: Blueprint) -> str | None:
        """How both prepare images, where that differs too little to refuse."""

    @property
    def vocabulary(self) -> int:
        """Columns of the head."""
        return self.config.get_text_config().vocab_size


def max_positions(config: PretrainedConfig) -> int | None:
    """Positions that a model's L was made for; of stretched rotary positions the stretched ones. None: not said."""
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    made_for, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(most, int(made_for * factor)) if most and made_for and factor else most


class Family(Protocol):
    """How models of a family are recognised and read; a line of the registry names one."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is that of a whole model of this family."""

    def read(self, stored: Stored) -> Blueprint:
        """A whole checkpoint; of its weights only the headers are read. Raises UserError for any other folder."""

    def from_parts(self, spec: Parts, who: str) -> Blueprint:
        """A model put together from parts. Raises UserError where that can't be."""

    def published_config(
        self, spec: Parts, who: str, published: Published
    ) -> tuple[PretrainedConfig, int] | None:
        """For a plan, the config of parts that are not all on this machine, and how many tokens its tokenizer has.

        None where a part is not known.
        """

    def usage(self, config: Mapping[str, Any]) -> str:
        """For a model card, how a saved model with this config.json is loaded and used, as Markdown."""

    def skeleton(self, config: PretrainedConfig) -> VisionLanguageModel:
        """A model without memory for its weights, on which parameters are counted."""

    def shape(self, config: PretrainedConfig) -> ModelShape:
        """The sizes that a plan's memory and operations are computed from, of an image of the usual size."""

    def image_tokens(self, config: PretrainedConfig) -> int:
        """Visual tokens of an image of the usual size."""
