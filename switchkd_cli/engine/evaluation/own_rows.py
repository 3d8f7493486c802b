"""Held-out rows of one's own as a benchmark: their questions, and the metrics that compare an answer with the row's.

Every question stands by itself, with the images of its row.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lmms_eval.api.metrics import anls
from lmms_eval.tasks.chartqa.utils import relaxed_correctness

from switchkd_cli import registry
from switchkd_cli.benchmarks import EXPOSURE, OWN_ROWS
from switchkd_cli.engine.data.image import images_of
from switchkd_cli.engine.data.rows import Fault, Rows
from switchkd_cli.engine.evaluation.lmms_model import Item
from switchkd_cli.errors import UserError
from switchkd_cli.files.hashes import cache_home
from switchkd_cli.recipe.schema import DataSet
from switchkd_cli.report.grouping import grouped
from switchkd_cli.report.stats.stored_answers import plain

ANSWER_TOKENS = 128
NAMED = 10  # rows that one error names


def questions(data: DataSet, limit: int | None, *, ranked: bool = False) -> list[Item]:
    """Return the first `limit` questions of a data set, or all.

    Raises UserError naming rows that can't be read, conversations of several exchanges that depend on one another, answers
    that aren't right ones, and system texts and images after a text, which a benchmark's question has no place for. Where
    answers to a question are `ranked`, a row has one question, and another row asks it too.
    """
    rows = registry.resolve("source", data.source)(cache_home(), **data.parameters)
    docs: list[tuple[int, int]] = []
    problems = [str(fault) for fault in rows.survey.faults]
    bad = {fault.row for fault in rows.survey.faults}
    for number in (n for n in range(len(rows)) if n not in bad):
        row = rows[number]
        if row.system is not None:
            problems.append(f"row {row.id}: has a system text, which is not asked")
        if row.places:
            problems.append(f"row {row.id}: an image inside or behind a question; a benchmark shows all in front of it")
        if row.unlearnt and not row.paired:
            problems.append(f"row {row.id}: an answer that is empty or not to be learnt; it is no right one")
        if row.paired:
            problems.append(f"row {row.id}: a preference; a question has one right answer here")
        elif len(row.exchanges) > 1 and rows.turns == "chained":
            problems.append(f"row {row.id}: a conversation; with `turns: independent` each question stands by itself")
        elif ranked and len(row.exchanges) > 1:
            problems.append(f"row {row.id}: several questions; {EXPOSURE} reads rows of one")
        docs += [(number, turn) for turn in range(len(row.exchanges))]
    if ranked and not problems:
        asked = [rows[number] for number, _ in docs[:limit]]
        alike = grouped(((row.exchanges[0][0], row.images), row.id) for row in asked)
        alone = [ids[0] for ids in alike.values() if len(ids) == 1]
        problems = [f"row {id}: no other row asks its question; {EXPOSURE} ranks several answers to it" for id in alone]
    if problems:
        more = [f"and {len(problems) - NAMED} more"] * (len(problems) > NAMED)
        raise UserError([f"evaluation.data: {problem}" for problem in problems[:NAMED] + more])
    return [_item(rows, docs, doc_id) for doc_id in range(len(docs[:limit]))]


def _item(rows: Rows, docs: Sequence[tuple[int, int]], doc_id: int) -> Item:
    number, turn = docs[doc_id]
    row = rows[number]
    question, target = row.exchanges[turn]

    def images(_: Any) -> list:
        try:
            return images_of(row, rows)
        except Fault as fault:
            raise UserError(f"evaluation.data: row {row.id}: {fault}") from fault

    return Item(OWN_ROWS, doc_id, question, docs, images, ANSWER_TOKENS, (), lambda _: target)


def read(name: str, items: Sequence[Item]) -> tuple[dict[str, Any], list[dict], list[dict]]:
    """Return the score of `items` by one of `ROW_METRICS`, an entry of results.json; a sample and its score of each item."""
    metric = name.removeprefix(f"{OWN_ROWS}.")
    if name == EXPOSURE:
        groups = list(grouped((item.key, item) for item in items).values())
        items = [canary for canary, *_ in groups]
        each = [{"score": exposure([item.nats for item in own]), "nats": own[0].nats} for own in groups]
    else:
        found = scores(metric, [item.answer for item in items], [item.target for item in items])
        each = [{"score": score} for score in found]
    mean, higher = fmean(of["score"] for of in each), name != EXPOSURE
    entry = {"score": 100 * mean if higher else mean, "metric": metric, "higher_is_better": higher, "split": "own"}
    samples = [{"doc_id": item.doc_id, "filtered_resps": [item.answer]} for item in items]
    return entry, samples, each


def exposure(nats: Sequence[float]) -> float:
    """Return the exposure in bits of the first of several answers, by their cross-entropies (1802.08232).

    log2 of their number - log2 of its rank, 1 being the likeliest: log2 of the number if no other is as likely, 0 if none is
    less likely. Answers that are as likely as it stand before it.
    """
    return math.log2(len(nats)) - math.log2(sum(of <= nats[0] for of in nats))


def scores(metric: str, answers: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Return the score of each answer by one of `METRICS`; CIDEr's depends on all right answers, and only on one answer."""
    if metric != "cider":
        return [float(METRICS[metric](answer, target)) for answer, target in zip(answers, targets, strict=True)]
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer()
    for answer, target in zip(answers, targets, strict=True):
        scorer += (" ".join(_words(answer)), [" ".join(_words(target))])
    return [float(score) for score in scorer.compute_score()[1]]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _f1(answer: str, target: str) -> float:
    """Harmonic mean of the shares of common words, as in SQuAD, articles kept."""
    said, right = Counter(_words(answer)), Counter(_words(target))
    if not said or not right:
        return float(said == right)
    return 2 * (said & right).total() / (said.total() + right.total())


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact": lambda answer, target: plain(answer) == plain(target),
    "anls": lambda answer, target: anls([target], [answer])["anls"],
    "relaxed": lambda answer, target: relaxed_correctness(answer.strip(), target.strip()),
    "f1": _f1,
}
