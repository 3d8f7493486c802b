"""Majority baseline: the best constant answers, without a look at the image, by the same stock metrics."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel

LETTERS = frozenset("ABCDEFGH")


class MajorityBaseline(LmmsModel):
    """Answers every item with the most frequent right answer of its task and kind, counted in the data set itself.

    That is an upper bound for constant answers, as it uses the right ones. All multiple-choice questions are one kind.
    Where the metric counts only one answer (POPE's F1: yes), the constant is that answer.
    """

    def prepare(self, items: Sequence[Item]) -> None:
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for item in items:
            counts[_group(item)][item.target] += 1
            item.free_images()
        self.constants = {
            (task, kind): BENCHMARKS[task].counted or max(sorted(count), key=count.__getitem__)
            for (task, kind), count in counts.items()
        }

    def answer(self, items: Sequence[Item]) -> list[str]:
        return [self.constants[_group(item)] for item in items]


def _group(item: Item) -> tuple[str, str]:
    if item.target in LETTERS:
        return item.task, "letter"
    return item.task, item.kind or ("yes/no" if item.target.lower() in ("yes", "no") else "open")
