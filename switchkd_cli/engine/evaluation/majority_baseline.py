"""The score of looking at nothing: the best constant answers, by the same stock metrics."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel

LETTERS = frozenset("ABCDEFGH")


class MajorityBaseline(LmmsModel):
    """Gives every item the most frequent right answer of its task and kind, counted in the set itself.

    That is an upper bound for constants: it has seen the answers. Multiple choice is one kind, whatever is
    asked. Where the metric counts one answer only (POPE's F1: yes), that is the constant.
    """

    def prepare(self, items: Sequence[Item]) -> None:
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for item in items:
            counts[_group(item)][item.target] += 1
            item.forget()
        self.kept = {
            (task, kind): BENCHMARKS[task].counted or max(sorted(count), key=count.__getitem__)
            for (task, kind), count in counts.items()
        }

    def answer(self, items: Sequence[Item]) -> list[str]:
        return [self.kept[_group(item)] for item in items]


def _group(item: Item) -> tuple[str, str]:
    if item.target in LETTERS:
        return item.task, "letter"
    return item.task, item.kind or ("yes/no" if item.target.lower() in ("yes", "no") else "open")
