"""The paper's findings put to the test of our runs: same direction, the opposite one, or not to be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.report.paper.claims import FINDINGS, Finding
from switchkd_cli.report.results.recipe_runs import Gathered
from switchkd_cli.report.results.seeds import Group
from switchkd_cli.report.stats.intervals import Estimate, paired
from switchkd_cli.report.tables.cells import Line, Number, Table, Tone, Verdict
from switchkd_cli.report.tables.columns import AVERAGE, Columns

ALIKE = 1.0
"""Points: two rows are as good as one another when the whole interval of their difference lies within so many of 0."""
WORDS: Mapping[Tone, str] = {"agrees": "agrees", "opposite": "opposite", "unclear": "not clear"}


@dataclass(frozen=True)
class Judged:
    """A finding, the recipe whose runs tell, and what they say."""

    finding: Finding
    recipe: str | None
    difference: Estimate | None
    """Paired by seed; None where the finding could not be tested."""
    verdict: Verdict


def judge(recipes: Sequence[Gathered], findings: Sequence[Finding] = FINDINGS) -> list[Judged]:
    """Every finding, also those that nothing here can test."""
    return [_judged(finding, recipes) for finding in findings]


def table(judged: Sequence[Judged]) -> Table | None:
    """Those whose recipe is in the report."""
    heads = ("the paper's finding", "paper", "here", "verdict", "tested in", "said by")
    lines = tuple(Line(each.finding.claim, _cells(each)) for each in judged if each.recipe)
    return Table(heads, lines) if lines else None


def summary(judged: Sequence[Judged]) -> Iterator[str]:
    """How many agree, how many don't, and what is not in the table."""
    counts = Counter(each.verdict.tone for each in judged)
    told = ", ".join(f"{words} {counts[tone]}" for tone, words in WORDS.items())
    yield f"{len(judged)} findings: {told}, not tested {counts['untested']}."
    absent = dict.fromkeys(each.finding.recipes[0] for each in judged if each.recipe is None)
    if absent:
        count = sum(each.recipe is None for each in judged)
        yield f"For {count} of them the recipe is not in this report: {', '.join(absent)}."


def _cells(each: Judged) -> tuple:
    found, printed = each.difference, each.finding.printed
    return (
        None if printed is None else Number(printed, difference=True),
        found and Number.minus(found),
        each.verdict,
        each.recipe,
        f"[{each.finding.tag}] {each.finding.source}",
    )


def _judged(finding: Finding, recipes: Sequence[Gathered]) -> Judged:
    held = {recipe.stem: recipe for recipe in reversed(recipes)}
    recipe = next((held[name] for name in finding.recipes if name in held), None)
    if recipe is None:
        return _untested(finding, None, f"{' or '.join(finding.recipes)} is not in this report")
    ours, theirs = recipe.group(finding.ours), recipe.group(finding.theirs)
    if ours is None or theirs is None:
        lacking = [row for row, own in ((finding.ours, ours), (finding.theirs, theirs)) if own is None]
        return _untested(finding, recipe, f"no finished run of {' and '.join(lacking)}")
    if _same(ours, theirs):
        return _untested(finding, recipe, "the two rows are one and the same run here")
    columns = Columns.of(ours.runs[0].scores, recipe.teacher)
    if finding.benchmark in columns.not_beaten:
        head = BENCHMARKS[finding.benchmark].column
        return _untested(
            finding, recipe, f"{head} is left out here: the teacher does not clearly beat the baselines"
        )
    difference = paired(*(_by_seed(group, finding.benchmark, columns) for group in (ours, theirs)))
    if difference is None:
        return _untested(finding, recipe, "no seed in common, or no score")
    tone = _tone(difference, alike=finding.alike)
    told = WORDS[tone] if difference.interval is not None else "not clear (one seed)"
    return Judged(finding, recipe.stem, difference, Verdict(told, tone))


def _untested(finding: Finding, recipe: Gathered | None, reason: str) -> Judged:
    return Judged(finding, recipe and recipe.stem, None, Verdict(f"not tested: {reason}", "untested"))


def _same(ours: Group, theirs: Group) -> bool:
    """Whether two rows did the very same, as where one model stands in for the two that they differ in."""
    keys = [{run.seed: run.info.get("key") for run in group.runs} for group in (ours, theirs)]
    return keys[0] == keys[1] and None not in keys[0].values()


def _by_seed(group: Group, benchmark: str, columns: Columns) -> dict[int, float]:
    if benchmark == AVERAGE:
        found = {run.seed: columns.average(run.scores) for run in group.runs}
    else:
        found = {run.seed: run.scores.get(benchmark) for run in group.runs}
    return {seed: score for seed, score in found.items() if score is not None}


def _tone(difference: Estimate, *, alike: bool) -> Tone:
    if difference.interval is None:
        return "unclear"
    low, high = difference.mean - difference.interval, difference.mean + difference.interval
    if alike:
        within, beyond = low >= -ALIKE and high <= ALIKE, low > ALIKE or high < -ALIKE
        return "agrees" if within else "opposite" if beyond else "unclear"
    return "agrees" if low > 0 else "opposite" if high < 0 else "unclear"
