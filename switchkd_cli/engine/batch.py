"""Examples and batches of tokens and images, and what models give for each image.

Attention masks and the label shift are made only here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

IGNORE = -100
"""Label of a token that is not supervised (the convention of torch's and transformers' cross-entropy)."""

ImageInput = Mapping[str, Tensor]
"""One image as a family's vision tower takes it: its tensors, of any shape, under the family's names."""

PerImage = Tensor | tuple[Tensor, ...]
"""Stacked, [P, M, ...], or P tensors [M_p, ...] where images have different numbers M_p of visual tokens.

Without any image it is a tensor [0, ...], so that it has a dtype, a device and a graph.
"""

POSITIONS = ("answer", "text", "image", "all")
"""Which positions a term compares: answer tokens, every text token, image tokens, or all of them."""

PREFERRED = ("pair", "chosen", "rejected")
"""The same, of rows with a preference."""
REJECTED = 2
"""The turn of an answer that was rejected, in a row with a preference."""


@dataclass(frozen=True)
class Unusable:
    """A row of data that can't be used, and the reason. `refused`: this row alone makes the whole data set refused."""

    row: int
    id: str
    fault: str
    refused: bool = False

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"row {self.row}", self.id, self.fault)))


@dataclass(frozen=True)
class Example:
    """One example: the tokens of a conversation, and its images (none, one or several).

    `turn` is 0 for tokens that every later token sees (the image, or the whole text of a chained conversation) and
    1, 2, ... for turns that are independent of one another: each sees only turn 0 and itself. `position`: position ids
    that the family computes, one or several numbers per token; None: counted along the turns.
    """

    id: str
    input_ids: Tensor  # [T] int64
    labels: Tensor  # [T] int64, unshifted, IGNORE where not supervised
    turn: Tensor  # [T] int64
    image: Tensor  # [T] bool: visual tokens
    images: tuple[ImageInput, ...] = ()  # in the order of their tokens
    position: Tensor | None = None  # [T] or [A, T]
    instead_of: tuple[Unusable, ...] = ()  # rows that this one replaces
    cut: int = 0  # number of tokens cut off at its end
    own: bool = False  # its answers are the student's own
    paired: bool = False  # turn 1 has the preferred answer to a question, turn 2 the rejected one
    others: Mapping[tuple[str, ...], Example] = field(default_factory=dict)
    """The row as other tokens (no images: these), by the names of the paths that read it so."""
    spans: Tensor | None = None  # [T] number of the span of bytes that both models' tokens end together; -1: in none
    aligned: Tensor | None = None  # [2] the answers' bytes in such spans, and all

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the example takes."""
        return sum(leaf.nbytes for leaf in tree_leaves(vars(self)) if isinstance(leaf, Tensor | Example))


@dataclass(frozen=True)
class Batch:
    """B examples padded on the right to T tokens, and their P images, in the order of the examples."""

    ids: tuple[str, ...]
    input_ids: Tensor  # [B, T]
    labels: Tensor  # [B, T], unshifted
    turn: Tensor  # [B, T], -1 in padding
    image: Tensor  # [B, T] bool: visual tokens
    images: tuple[ImageInput, ...]
    image_rows: Tensor  # [P] int64: the example that each image belongs to
    own: Tensor  # [B] bool: its answers are the student's own
    paired: Tensor  # [B] bool: see `Example`
    attention: Tensor = field(repr=False)  # [B, T] bool, or [B, 1, T, T] bool where turns are independent
    position: Tensor = field(repr=False)  # [B, T], or [A, B, T] where a family counts along A axes
    unusable: tuple[Unusable, ...] = ()  # rows that examples of this batch replace
    others: Mapping[tuple[str, ...], Batch] = field(default_factory=dict)  # see `Example`
    spans: Tensor | None = None  # [B, T] see `Example`
    aligned: Tensor | None = None  # [B, 2] see `Example`
    mixture: str = ""  # what `mixed` images are drawn by, in addition to each example's id

    def reading(self, path: str) -> Batch:
        """Return the rows as the tokens that a path reads, [B, T]."""
        return next((of for names, of in self.others.items() if path in names), self)

    def read_by(self, path: str, keep: Tensor) -> tuple[Batch, Tensor]:
        """Return the tokens that a path reads, [B, T], and its part of a mask, which is [B, T of all `readings` together]."""
        readings, own = self.readings, self.reading(path)
        parts = keep.split([of.input_ids.shape[1] for of in readings], 1)
        return own, next(part for of, part in zip(readings, parts, strict=True) if of is own)

    @property
    def readings(self) -> tuple[Batch, ...]:
        """The student's tokens, and what other paths read in their place."""
        return (self, *self.others.values())

    def shown(self, images: str, mixture: str = "") -> tuple[ImageInput, ...]:
        """Return the images as a path sees them (`PathSpec.images`). `mixture` draws those that are mixed."""
        if images == "mixed":
            return self._mixed(mixture)
        return (self.with_blank_images() if images == "blank" else self).images

    def _mixed(self, mixture: str) -> tuple[ImageInput, ...]:
        """Return each image blended with its like in the example next to its own; as it is where that has none of its layout.

        Examples are next to one another by twos, so that no split of a step into micro-batches of even size changes a pair.
        An image's share of the blend, in [0, 1), follows from `mixture`, its example's id and which of its images it is.
        """
        owners, mixed = self.image_rows.tolist(), []
        by_place = {(row, owners[:at].count(row)): self.images[at] for at, row in enumerate(owners)}
        for (row, number), own in by_place.items():
            other = by_place.get((row ^ 1, number), own)
            other = other if layout(other) == layout(own) else own
            share = random.Random(f"{mixture}/{self.ids[row]}/{number}").random()
            pixels = {name: of for name, of in own.items() if of.is_floating_point()}
            mixed.append({**own, **{name: of.lerp(other[name], 1 - share) for name, of in pixels.items()}})
        return tuple(mixed)

    @property
    def predicted_spans(self) -> Tensor:
        """[B, T] int64: at t, the span of the token that position t predicts, of a number that no other row has; -1: none."""
        assert self.spans is not None
        own = _shift_left(self.spans, -1)
        row = torch.arange(len(own), device=own.device)[:, None]
        return torch.where(own < 0, own, (row << 32) + own)

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of tokens without padding, and with it."""
        return int((self.turn >= 0).sum()), self.turn.numel()

    @property
    def targets(self) -> Tensor:
        """[B, T]: at t, the token that position t predicts; IGNORE where it is not supervised."""
        return _shift_left(self.labels, IGNORE)

    def predicting(self, on: str) -> Tensor:
        """[B, T] bool: the positions t whose *next* token belongs to `on` (the label shift happens here only).

        A turn's first token follows the shared part, not the turn written before it: that step never counts. Visual
        tokens are never predicted: `image` selects the positions that hold them. In front of `on`, "given" or "own" (`own
        answer`) selects examples by whose answers they have.
        """
        whose, _, on = on.rpartition(" ")
        if whose:
            return self.predicting(on) & (self.own == (whose == "own"))[:, None]
        if on == "image":
            return self.image
        real, learnt, pair = self.turn >= 0, self.labels != IGNORE, self.paired[:, None]
        rejected = pair & (self.turn == REJECTED)
        of_pair = {"pair": learnt & pair, "chosen": learnt & pair & ~rejected, "rejected": learnt & rejected}
        chosen = {"answer": learnt & ~rejected, "text": real & ~self.image, "all": real, **of_pair}[on]
        follows = (_shift_left(self.turn, -1) == self.turn) | (self.turn == 0)
        return _shift_left(chosen, False) & follows

    @property
    def signs(self) -> Tensor:
        """[B, T] int64: at t, -1 where the token that position t predicts is a rejected answer's, else 1."""
        return 1 - 2 * (self.paired[:, None] & (_shift_left(self.turn, -1) == REJECTED)).long()

    def predicting_in_all(self, on: str) -> Tensor:
        """Return `predicting` of all `readings`, one after another, as `read_by` takes it."""
        return torch.cat([of.predicting(on) for of in self.readings], 1)

    @property
    def has_image(self) -> Tensor:
        """[B] bool: the examples with an image."""
        return torch.isin(torch.arange(len(self.ids), device=self.image_rows.device), self.image_rows)

    def with_blank_images(self, contrast: float = 0.0) -> Batch:
        """Return the batch with pixels of 0, about the mean that they are normalised by: nothing can be seen in them.

        `contrast`: the share of their distance from 0 that pixels keep. With a half, what an image shows can still be seen.
        """
        blank = tree_map(lambda of: of * contrast if of.is_floating_point() else of, self.images)
        others = {names: of.with_blank_images(contrast) for names, of in self.others.items()}
        return replace(self, images=blank, others=others)

    def with_other_images(self, seen: dict[Any, Any]) -> tuple[Batch, Tensor]:
        """Return the batch with the last image of the same `layout`, of an earlier row, in each image's place.

        Also which rows [B] had one for each of their images that differs from it. `seen` has the last image of each layout,
        also of earlier batches, and is brought up to date; under the names of `others` it has theirs.
        """
        others = {names: of.with_other_images(seen.setdefault(names, {}))[0] for names, of in self.others.items()}
        images, replaced = [], torch.ones(len(self.ids), dtype=torch.bool, device=self.input_ids.device)
        for row in range(len(self.ids)):
            own = [image for image, owner in zip(self.images, self.image_rows.tolist(), strict=True) if owner == row]
            for image in own:
                other = seen.get(layout(image), image)
                replaced[row] &= any(not torch.equal(other[name], of) for name, of in image.items())
                images.append(other)
            seen |= {layout(image): image for image in own}
        return replace(self, images=tuple(images), others=others), replaced

    def rows(self, keep: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        """Yield each example as a batch of one without padding, with its part of `keep` [B, T]: [1, tokens]."""
        for i, example in enumerate(self.examples()):
            yield collate([replace(example, others={})], pad_token=0), keep[i : i + 1, : len(example.turn)]

    def examples(self) -> Iterator[Example]:
        """Yield the examples without padding and spans."""
        owners, others = self.image_rows.tolist(), {names: list(of.examples()) for names, of in self.others.items()}
        for i, length in enumerate((self.turn >= 0).sum(1).tolist()):
            ids, labels, turn, image = (of[i, :length] for of in (self.input_ids, self.labels, self.turn, self.image))
            images = tuple(image for image, owner in zip(self.images, owners, strict=True) if owner == i)
            marks: dict[str, Any] = {"own": bool(self.own[i]), "paired": bool(self.paired[i])}
            marks |= {"position": self.position[..., i, :length], "others": {n: of[i] for n, of in others.items()}}
            yield Example(self.ids[i], ids, labels, turn, image, images, **marks)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        move = cache(lambda tensor: tensor.to(device, non_blocking=True))  # images that both read are moved once
        moved, *others = (replace(of, **tree_map_only(Tensor, move, vars(of))) for of in self.readings)
        return replace(moved, others=dict(zip(self.others, others, strict=True)))


def collate(examples: Sequence[Example], *, pad_token: int) -> Batch:
    """Return a batch of examples, padded on the right to one length, with its attention mask."""
    length = max(len(e.input_ids) for e in examples)
    turn = _stack([e.turn for e in examples], length, -1)
    given = [e.position for e in examples if e.position is not None]
    spans = [e.spans for e in examples if e.spans is not None]
    aligned = [e.aligned for e in examples if e.aligned is not None]
    others = {
        names: [replace(e.others[names], images=e.others[names].images or e.images) for e in examples]
        for names in examples[0].others
        if all(names in e.others for e in examples)
    }
    return Batch(
        ids=tuple(e.id for e in examples),
        input_ids=_stack([e.input_ids for e in examples], length, pad_token),
        labels=_stack([e.labels for e in examples], length, IGNORE),
        turn=turn,
        image=_stack([e.image for e in examples], length, False),
        images=tuple(image for e in examples for image in e.images),
        image_rows=torch.tensor([row for row, e in enumerate(examples) for _ in e.images], dtype=torch.long),
        own=torch.tensor([e.own for e in examples]),
        paired=torch.tensor([e.paired for e in examples]),
        attention=_attention(turn),
        position=_stack(given, length, 0) if given else positions(turn),
        unusable=tuple(row for e in examples for row in e.instead_of),
        # padding is masked: any id will do that is no image's
        others={names: collate(of, pad_token=int(of[0].input_ids[-1])) for names, of in others.items()},
        spans=_stack(spans, length, -1) if spans else None,
        aligned=torch.stack(aligned) if aligned else None,
    )


def layout(image: ImageInput) -> str:
    """Return what two images have in common whose tokens have the same places: shapes, and what isn't pixels."""
    tensors = sorted(image.items())
    return repr([(name, of.shape, None if of.is_floating_point() else of.tolist()) for name, of in tensors])


def row_selector(chosen: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a selector of the chosen rows of values [N, ...]; it returns its input uncopied where all are chosen."""
    every = bool(chosen.all())
    return lambda values: values if every else values[chosen]


def _attention(turn: Tensor) -> Tensor:
    """Return the attention mask: [B, T] bool where only padding is masked, [B, 1, T, T] where turns are independent."""
    if not (turn > 0).any():
        return turn >= 0
    # query t sees key s if s is not later, and is shared or of the same turn
    query, key = turn[:, :, None], turn[:, None, :]
    causal = turn.new_ones(turn.shape[1], turn.shape[1], dtype=torch.bool).tril()
    mask = causal & ((key == 0) | (key == query)) & (key >= 0)
    # padding sees at least itself: no softmax is empty
    itself = torch.eye(turn.shape[1], dtype=torch.bool, device=turn.device)
    return (mask | itself)[:, None]


def positions(turn: Tensor) -> Tensor:
    """Return position ids [B, T]: each independent turn counts on from the end of the shared part."""
    index = torch.arange(turn.shape[1], device=turn.device).expand_as(turn)
    shared = (turn == 0).sum(1, keepdim=True)
    begins = (turn != torch.roll(turn, 1, dims=1)) & (turn > 0)
    start = torch.where(begins, index, 0).cummax(1).values
    return torch.where(turn > 0, shared + index - start, index)


def _shift_left(values: Tensor, last: int | bool) -> Tensor:
    """Return values[:, t + 1] at t, and `last` at the end."""
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], last)], 1)


def _stack(rows: Sequence[Tensor], length: int, filler: int) -> Tensor:
    """Pad and stack rows: [B, T] from rows [T], or [A, B, T] from rows [A, T]."""
    return torch.stack([pad(row, (0, length - row.shape[-1]), value=filler) for row in rows], -2)


def together(images: Sequence[Tensor]) -> PerImage:
    """The tensors of one or more images: stacked where their shapes agree, otherwise as a tuple."""
    return torch.stack(list(images)) if len({image.shape for image in images}) == 1 else tuple(images)


def apply(function: Callable[[Tensor], Tensor], values: PerImage) -> PerImage:
    """Apply a function that treats every image alike (a linear map, ``detach``), in one call where they are stacked."""
    return function(values) if isinstance(values, Tensor) else tuple(function(image) for image in values)


def flat(values: PerImage) -> Tensor:
    """All images' values one after another, [sum of M_p, ...]."""
    return values.flatten(0, 1) if isinstance(values, Tensor) else torch.cat(values)


def loss_per_image(loss: Callable[..., Tensor], *arguments: Any, **parameters: Any) -> Tensor:
    """Call a loss over images [P, ...] -> [P]; image by image where an argument is a tuple of P tensors.

    In that case the other tensors are cut into their P images, and what is no tensor is passed on.
    """
    ragged = [argument for argument in arguments if isinstance(argument, tuple)]
    if not ragged:
        return loss(*arguments, **parameters)

    def of_image(argument: Any, image: int) -> Any:
        return argument[image][None] if isinstance(argument, Tensor | tuple) else argument

    given = ([of_image(argument, image) for argument in arguments] for image in range(len(ragged[0])))
    return torch.cat([loss(*of_one, **parameters) for of_one in given])
