"""The batch: rows of tokens and pictures, and the one place that knows masks and the label shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""Label of a token that is not supervised (the convention of torch's and transformers' cross-entropy)."""

IMAGE = "<image>"
"""The token that stands for a picture, in rows of data and in the tokenizer."""

POSITIONS = ("answer", "text", "image", "all")
"""Which positions a term compares: answer tokens, every text token, image tokens, or all of them."""


@dataclass(frozen=True)
class Unusable:
    """A row that was met and can't be used. `refused`: not even one such row is let through."""

    row: int
    id: str
    fault: str
    refused: bool = False

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"row {self.row}", self.id, self.fault)))


@dataclass(frozen=True)
class Example:
    """One row: a picture (or none) and the tokens of its conversation.

    `turn` is 0 for what every later token may see (the image, or a chained conversation's whole text) and
    1, 2, ... for turns that are independent of one another: each sees turn 0 and itself only.
    """

    id: str
    input_ids: Tensor  # [T] int64
    labels: Tensor  # [T] int64, unshifted, IGNORE where not supervised
    turn: Tensor  # [T] int64
    picture: Tensor | None = None  # [3, H, W]
    instead_of: tuple[Unusable, ...] = ()  # rows met before this one, which stands in for them
    cut: int = 0  # tokens of its end that were cut off

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))


@dataclass(frozen=True)
class Batch:
    """B rows padded on the right to T tokens, and the P pictures of those rows that have one, in row order."""

    ids: tuple[str, ...]
    input_ids: Tensor  # [B, T]
    labels: Tensor  # [B, T], unshifted
    turn: Tensor  # [B, T], -1 in padding
    image: Tensor  # [B, T] bool: image tokens
    pictures: Tensor  # [P, 3, H, W]
    attention: Tensor = field(repr=False)  # [B, T] bool, or [B, 1, T, T] bool where turns are independent
    position: Tensor = field(repr=False)  # [B, T]
    unusable: tuple[Unusable, ...] = ()  # rows that others stand in for here

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.turn >= 0).sum())

    @property
    def places(self) -> int:
        """Tokens and padding."""
        return self.turn.numel()

    @property
    def targets(self) -> Tensor:
        """[B, T]: at t, the token that position t predicts; IGNORE where it is not supervised."""
        return _next(self.labels, IGNORE)

    def predicting(self, on: str) -> Tensor:
        """[B, T] bool: the positions t whose *next* token belongs to `on` (the label shift happens here only).

        A turn's first token follows the shared part, not the turn written before it: that step never counts. An image
        token is no word to be predicted: `image` are the positions that hold one.
        """
        if on == "image":
            return self.image
        if on == "answer":
            wanted = self.labels != IGNORE
        elif on == "text":
            wanted = (self.turn >= 0) & ~self.image
        elif on == "all":
            wanted = self.turn >= 0
        else:
            raise ValueError(f"positions are one of {', '.join(POSITIONS)}, got {on!r}")
        follows = (_next(self.turn, -1) == self.turn) | (self.turn == 0)
        return _next(wanted, False) & follows

    def rows(self, keep: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        """Each row as a batch of its own without padding, and its part of `keep` [B, T]: [1, its tokens]."""
        lengths, pictured = (self.turn >= 0).sum(1).tolist(), self.image.any(1).tolist()
        for i, length in enumerate(lengths):
            row, picture = slice(i, i + 1), sum(pictured[:i])
            turn = self.turn[row, :length]
            part = Batch(
                ids=self.ids[row],
                input_ids=self.input_ids[row, :length],
                labels=self.labels[row, :length],
                turn=turn,
                image=self.image[row, :length],
                pictures=self.pictures[picture : picture + pictured[i]],
                attention=_attention(turn),
                position=self.position[row, :length],
            )
            yield part, keep[row, :length]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate(examples: Sequence[Example], *, image_token: int, pad_token: int) -> Batch:
    """Pads rows on the right and says who sees whom."""
    length = max(len(e.input_ids) for e in examples)
    input_ids = _stack([e.input_ids for e in examples], length, pad_token)
    turn = _stack([e.turn for e in examples], length, -1)
    pictures = [e.picture for e in examples if e.picture is not None]
    return Batch(
        ids=tuple(e.id for e in examples),
        input_ids=input_ids,
        labels=_stack([e.labels for e in examples], length, IGNORE),
        turn=turn,
        image=(input_ids == image_token) & (turn >= 0),
        pictures=torch.stack(pictures) if pictures else torch.empty(0, 3, 0, 0),
        attention=_attention(turn),
        position=_position(turn),
        unusable=tuple(row for e in examples for row in e.instead_of),
    )


def only(chosen: Tensor) -> Callable[[Tensor], Tensor]:
    """What takes the chosen [N] of values [N, ...]: themselves, no copy, where all are chosen."""
    whole = bool(chosen.all())
    return lambda values: values if whole else values[chosen]


def _attention(turn: Tensor) -> Tensor:
    """Who sees whom: [B, T] bool where nothing but padding is unseen, [B, 1, T, T] where turns are independent."""
    return _sight(turn) if bool((turn > 0).any()) else turn >= 0


def _sight(turn: Tensor) -> Tensor:
    """[B, 1, T, T] bool: query t sees key s if s is not later, and is shared or of the same turn."""
    query, key = turn[:, :, None], turn[:, None, :]
    causal = turn.new_ones(turn.shape[1], turn.shape[1], dtype=torch.bool).tril()
    sight = causal & ((key == 0) | (key == query)) & (key >= 0)
    # padding sees at least this: no empty softmax
    itself = torch.eye(turn.shape[1], dtype=torch.bool, device=turn.device)
    return (sight | itself)[:, None]


def _position(turn: Tensor) -> Tensor:
    """[B, T]: each independent turn goes on counting from the end of the shared part."""
    index = torch.arange(turn.shape[1]).expand_as(turn)
    shared = (turn == 0).sum(1, keepdim=True)
    begins = (turn != torch.roll(turn, 1, dims=1)) & (turn > 0)
    start = torch.where(begins, index, 0).cummax(1).values
    return torch.where(turn > 0, shared + index - start, index)


def _next(values: Tensor, last: int | bool) -> Tensor:
    """values[:, t + 1] at t."""
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], last)], 1)


def _stack(rows: Sequence[Tensor], length: int, filler: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(r, (0, length - len(r)), value=filler) for r in rows])


def prepared(image_processor: Callable[..., Mapping[str, Tensor]], images: Any) -> Tensor:
    """One image or several (PIL) as a tower takes them: [images, 3, height, width].

    Colours are said to come last: before transformers 5.6 a side of 1 or 3 pixels could be taken for them.
    """
    return image_processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
