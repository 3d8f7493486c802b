"""The interface of a family of models: how it is read, how examples are prepared, and V, P and L one by one.

A family is one file (or a few), a line of the registry, and a test class that inherits tests/support/family.py's.
No code outside `engine/models` depends on a particular family.
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
from switchkd_cli.engine.hub import CheckpointFolder
from switchkd_cli.engine.inputs import InputProcessor, PreparedImage
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.per_image import PerImage
from switchkd_cli.recipe.schema import Parts

Difference = tuple[str, str]
"""Why a teacher's projector can't read a student's features, and a hint what to do about it."""

Published = Callable[[str, str], Mapping[str, Any]]
"""Maps a part (`vision`, `language`) and a model's name to its published `config` and `tokens`; empty: not known."""


@dataclass(frozen=True)
class ProjectedImage:
    """A prepared image and its visual tokens [M, width of L]."""

    prepared: PreparedImage
    tokens: Tensor

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + sum(value.nbytes for value in self.prepared.inputs.values())


class VisionLanguageModel(nn.Module, ABC):
    """A model as vision encoder V, projector P and language model L (head included).

    `model` is a plain transformers model, so that a saved model loads without this package. The layers of the parts in
    `recomputed_parts` ("vision", "language") keep only their inputs for the backward pass, which computes them again.
    """

    def __init__(self, model: PreTrainedModel, inputs: InputProcessor) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.recomputed_parts: frozenset[str] = frozenset()

    @property
    @abstractmethod
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """The modules of `vision`, `projector` and `language`, the names that a recipe's `train` accepts."""

    @abstractmethod
    def used_parameters(self, part: str) -> dict[str, nn.Parameter]:
        """Return the part's parameters that a forward pass uses, by name: training the part trains these."""

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """The size of the last axis of `features`, `tokens` and `attention`."""

    @property
    def head(self) -> Tensor:
        """The weights [V, D] of L's head, which has no bias."""
        return self.model.get_output_embeddings().weight

    @abstractmethod
    def blank_image(self) -> ImageInput:
        """Return an image without content. V runs on it where V is trained and a batch has no image."""

    @abstractmethod
    def encode(self, images: Sequence[ImageInput]) -> PerImage:
        """V: P images -> features [P, F, width of V], or P tensors [F_p, width of V]."""

    @abstractmethod
    def project(self, features: PerImage, images: Sequence[ImageInput] = ()) -> PerImage:
        """P: the features of those images -> visual tokens [P, M, width of L], or P tensors [M_p, width of L]."""

    @abstractmethod
    def hidden_states(self, batch: Batch, tokens: PerImage, keep: Tensor) -> Tensor:
        """L without its head: text and visual tokens -> hidden states [N, D] at the N positions of `keep` [B, T]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """L's head: hidden states [N, D] -> logits [N, V]."""
        return self.model.get_output_embeddings()(hidden)

    @abstractmethod
    def attention(self, batch: Batch, tokens: PerImage) -> PerImage:
        """L's first layer: attention of each text token to each visual token, [P, T, M, heads]; 0 where there is none."""

    @abstractmethod
    def mean_attention(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """For figures, one example: attention [T, T], the mean over layers and heads, and logits [T, V]."""

    @abstractmethod
    def same_vision(self, other: VisionLanguageModel) -> bool:
        """Return whether both models compute the same features from every image."""

    @abstractmethod
    def generate(
        self, texts: Sequence[str], images: Sequence[Sequence[ProjectedImage]], generation: GenerationConfig
    ) -> tuple[list[int], Tensor]:
        """Answer B texts, each with its images. Returns the texts' lengths in tokens and the new ids [B, <= limit]."""

    @abstractmethod
    def save(
        self, folder: Path, *, template: str | None = None, end: str | None = None, weights: bool = True
    ) -> list[str]:
        """Write a folder in the layout of the family's published checkpoints. Returns notes of what was left out.

        `template` is the chat template (Jinja) of the training and `end` the token that ends an answer; None keeps those
        of the processor. The model itself doesn't change. Without `weights` only one tensor is written, to check that
        all other files can be.
        """


@dataclass(frozen=True)
class Blueprint(ABC):
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
        model = self.weights(dtype)
        if self.ends:
            model.generation_config.eos_token_id = list(self.ends) if len(self.ends) > 1 else self.ends[0]
        return self.wrap(model)

    @abstractmethod
    def wrap(self, model: PreTrainedModel) -> VisionLanguageModel:
        """Return the transformers model as V, P and L."""

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """Yield where the config, the tokenizer and the image processor don't fit together."""

    @abstractmethod
    def vision_differences(self, student: Blueprint) -> Iterator[Difference]:
        """Yield why this model's projector can't read the student's features."""

    @abstractmethod
    def layer_difference(self, student: Blueprint) -> Difference | None:
        """Return the feature layers of both models' V where they differ, or None."""

    @abstractmethod
    def image_note(self, student: Blueprint) -> str | None:
        """Return a note of how the two prepare images differently, where it is too little to refuse, or None."""

    @property
    def vocabulary(self) -> int:
        """Number of columns of the head."""
        return self.config.get_text_config().vocab_size


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the number of positions that L supports, rotary scaling included; None: not in the config."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return max(limit, int(original * factor)) if limit and original and factor else limit


class Family(Protocol):
    """How models of a family are recognised and read; each line of the registry's FAMILIES names one."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Return whether a config.json describes a complete model of this family."""

    def read(self, checkpoint: CheckpointFolder) -> Blueprint:
        """Read a complete checkpoint, of its weights only the headers. Raises UserError for any other folder."""

    def from_parts(self, spec: Parts, who: str) -> Blueprint:
        """Put a model together from parts. Raises UserError where they don't fit."""

    def published_config(self, spec: Parts, who: str, published: Published) -> tuple[PretrainedConfig, int] | None:
        """For a plan: the config of a model whose parts are not all on this machine, and its tokenizer's number of tokens.

        None where a part's config is not known.
        """

    def usage(self, config: Mapping[str, Any]) -> str:
        """Return Markdown for a model card: how to load and use a saved model with this config.json."""

    def skeleton(self, config: PretrainedConfig) -> VisionLanguageModel:
        """Return a model without memory for its weights, to count its parameters."""

    def shape(self, config: PretrainedConfig) -> ModelShape:
        """Return the sizes from which a plan computes memory and FLOPs, for an image of the usual size."""
