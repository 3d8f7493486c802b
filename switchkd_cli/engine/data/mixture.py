"""Several data sets as one, of which a stage draws by weight."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch.utils.data import ConcatDataset

from switchkd_cli.engine.batch import Example, Unusable
from switchkd_cli.engine.data.conversation import Conversations


class Mixture(ConcatDataset[Example]):
    """The examples of several data sets, numbered one set after another, of which training takes shares by `weights`.

    An unusable row's number counts through the sets, too. A row is stood in for by one of its own set. The sets have one
    chat template: the recipe's check has seen to it.
    """

    def __init__(self, parts: Sequence[Conversations], weights: Sequence[float]) -> None:
        super().__init__(parts)
        self.parts = parts
        self.shares = [weight / sum(weights) for weight in weights]
        self.chat_template, self.end = parts[0].chat_template, parts[0].end

    def __getitem__(self, index: int) -> Example:
        part, first = self._part(index)
        example = part[index - first]
        return replace(example, instead_of=tuple(replace(row, row=first + row.row) for row in example.instead_of))

    def add_unusable(self, rows: Iterable[Unusable]) -> None:
        """Count rows that turned out unusable, each in its set. Raises UserError where a set has too many."""
        for row in rows:
            part, first = self._part(row.row)
            part.add_unusable([replace(row, row=row.row - first)])

    def _part(self, index: int) -> tuple[Conversations, int]:
        """Return the data set of an example, and the number of that set's first one."""
        number = bisect_right(self.cumulative_sizes, index)
        return self.parts[number], [0, *self.cumulative_sizes][number]


Examples = Conversations | Mixture
"""What a stage trains on."""
