"""Several data sets as one, of which a stage draws by weight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np
from torch.utils.data import Dataset

from switchkd_cli.engine.batch import Example, Unusable
from switchkd_cli.engine.data.conversation import Conversations


class Mixture(Dataset[Example]):
    """The examples of several data sets, numbered one set after another; `shares` are their shares of the training.

    An unusable row's number counts through the sets, too. A row is stood in for by one of its own set. The sets have one
    chat template: the recipe's check has seen to it.
    """

    def __init__(self, parts: Sequence[Conversations], shares: Sequence[float]) -> None:
        self.parts, self.shares = parts, shares
        self.firsts = [0, *accumulate(map(len, parts))][:-1]
        self.chat_template, self.end = parts[0].chat_template, parts[0].end

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Example:
        part = bisect_right(self.firsts, index) - 1
        first = self.firsts[part]
        example = self.parts[part][index - first]
        replaced = tuple(replace(row, row=first + row.row) for row in example.instead_of)
        return replace(example, instead_of=replaced) if replaced else example

    @property
    def sizes(self) -> np.ndarray:
        """See `Conversations.sizes`."""
        return np.concatenate([part.sizes for part in self.parts])

    @property
    def image_mask(self) -> np.ndarray:
        """See `Conversations.image_mask`."""
        return np.concatenate([part.image_mask for part in self.parts])

    @property
    def fits_in_memory(self) -> bool:
        """Whether each set keeps its prepared examples in memory."""
        return all(part.fits_in_memory for part in self.parts)

    @property
    def unusable(self) -> int:
        """The number of rows known to be unusable."""
        return sum(part.unusable for part in self.parts)

    def add_unusable(self, rows: Iterable[Unusable]) -> None:
        """Count rows that turned out unusable, each in its set. Raises UserError where a set has too many."""
        for row in rows:
            part = bisect_right(self.firsts, row.row) - 1
            self.parts[part].add_unusable([replace(row, row=row.row - self.firsts[part])])

    def recovered_rows(self) -> list[str]:
        """See `Conversations.recovered_rows`."""
        return list(chain.from_iterable(part.recovered_rows() for part in self.parts))


Examples = Conversations | Mixture
"""What a stage trains on."""
