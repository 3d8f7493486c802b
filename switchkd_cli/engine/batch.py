"""The batch: examples of tokens and images, and the one place that knows masks and the label shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORE = -100
"""Label of a token that is not supervised (the convention of torch's and transformers' cross-entropy)."""

ImageInput = Mapping[str, Tensor]
"""One image as a family's vision tower takes it: its tensors, of any shape, by the family's names for them."""

POSITIONS = ("answer", "text", "image", "all")
"""Which positions a term compares: answer tokens, every text token, image tokens, or all of them."""


@dataclass(frozen=True)
class Unusable:
    """A row of data that can't be used, and why. `refused`: the data set is refused because of this row alone."""

    row: int
    id: str
    fault: str
    refused: bool = False

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"row {self.row}", self.id, self.fault)))


@dataclass(frozen=True)
class Example:
    """One example: the tokens of a conversation, and its images (none, one or several).

    `turn` is 0 for what every later token may see (the image, or a chained conversation's whole text) and
    1, 2, ... for turns that are independent of one another: each sees turn 0 and itself only. `position`: position
    ids of the family's own, one number a token or several; none: counted along the turns.
    """

    id: str
    input_ids: Tensor  # [T] int64
    labels: Tensor  # [T] int64, unshifted, IGNORE where not supervised
    turn: Tensor  # [T] int64
    image: Tensor | None = None  # [T] bool: visual tokens; None: there are none
    images: tuple[ImageInput, ...] = ()  # in the order of their tokens
    position: Tensor | None = None  # [T] or [A, T]
    instead_of: tuple[Unusable, ...] = ()  # rows met before this one, which stands in for them
    cut: int = 0  # tokens of its end that were cut off

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        held = [*vars(self).values(), *(tensor for image in self.images for tensor in image.values())]
        return sum(value.nbytes for value in held if isinstance(value, Tensor))


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
    attention: Tensor = field(repr=False)  # [B, T] bool, or [B, 1, T, T] bool where turns are independent
    position: Tensor = field(repr=False)  # [B, T], or [A, B, T] where a family counts along A axes
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
        """Each example as a batch of its own without padding, and its part of `keep` [B, T]: [1, its tokens]."""
        owners = self.image_rows.tolist()
        for i, length in enumerate((self.turn >= 0).sum(1).tolist()):
            row, turn = slice(i, i + 1), self.turn[i : i + 1, :length]
            images = tuple(image for image, owner in zip(self.images, owners, strict=True) if owner == i)
            part = Batch(
                ids=self.ids[row],
                input_ids=self.input_ids[row, :length],
                labels=self.labels[row, :length],
                turn=turn,
                image=self.image[row, :length],
                images=images,
                image_rows=self.image_rows.new_zeros(len(images)),
                attention=_attention(turn),
                position=self.position[..., row, :length],
            )
            yield part, keep[row, :length]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        images = tuple(
            {name: value.to(device, non_blocking=True) for name, value in image.items()}
            for image in self.images
        )
        return replace(self, images=images, **moved)  # type: ignore[arg-type]


def collate(examples: Sequence[Example], *, pad_token: int) -> Batch:
    """Pad examples on the right to one length, and say which token sees which."""
    length = max(len(e.input_ids) for e in examples)
    turn = _stack([e.turn for e in examples], length, -1)
    no_image = [torch.zeros_like(e.turn, dtype=torch.bool) for e in examples]
    own = [e.position for e in examples if e.position is not None]
    return Batch(
        ids=tuple(e.id for e in examples),
        input_ids=_stack([e.input_ids for e in examples], length, pad_token),
        labels=_stack([e.labels for e in examples], length, IGNORE),
        turn=turn,
        image=_stack(
            [none if e.image is None else e.image for e, none in zip(examples, no_image, strict=True)],
            length,
            False,
        ),
        images=tuple(image for e in examples for image in e.images),
        image_rows=torch.tensor([row for row, e in enumerate(examples) for _ in e.images], dtype=torch.long),
        attention=_attention(turn),
        position=_stack(own, length, 0) if own else _position(turn),
        unusable=tuple(row for e in examples for row in e.instead_of),
    )


def row_selector(chosen: Tensor) -> Callable[[Tensor], Tensor]:
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
    """[B, T] of rows [T], or [A, B, T] of rows [A, T]."""
    return torch.stack([pad(row, (0, length - row.shape[-1]), value=filler) for row in rows], -2)
