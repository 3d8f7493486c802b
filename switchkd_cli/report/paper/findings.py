"""Check the paper's findings, listed in claims.yaml, on our runs: same direction, the opposite one, or not clear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.report.document.cells import Number, Tone, Verdict
from switchkd_cli.report.document.model import Line, Table
from switchkd_cli.report.results.finished_run import SAFE
from switchkd_cli.report.results.recipe_runs import RecipeRuns
from switchkd_cli.report.results.row_runs import RowRuns
from switchkd_cli.report.stats.intervals import Estimate, paired_difference
from switchkd_cli.report.tables.columns import AVERAGE, Columns
from switchkd_cli.report.tables.footnotes import MDE

ALIKE = 1.0
"""Points: two rows are as good as one another when the whole interval of their difference is this close to 0."""
WORDS: Mapping[Tone, str] = {"agrees": "agrees", "opposite": "opposite", "unclear": "not clear"}


@dataclass(frozen=True)
class Finding:
    """`ours` lies above `theirs`, by `printed` points if the paper says by how much."""

    claim: str
    tag: Literal["S", "C", "I", "T"]
    source: str
    recipes: tuple[str, ...]
    """Where it can be tested; the first of them that a report holds is taken."""
    ours: str
    theirs: str
    printed: float | None
    benchmark: str = AVERAGE
    alike: bool = False
    """Whether the claim is that the two rows are as good as one another."""


_listed = yaml.load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"), Loader=SAFE)
FINDINGS = tuple(Finding(**entry | {"recipes": tuple(entry["recipes"])}) for entry in _listed)


@dataclass(frozen=True)
class CheckedFinding:
    """A finding, the recipe whose runs check it, and the verdict."""

    finding: Finding
    recipe: str | None
    verdict: Verdict
    difference: Estimate | None = None
    """Paired by seed; None where the finding could not be tested."""


def check_findings(recipes: Sequence[RecipeRuns], findings: Sequence[Finding] = FINDINGS) -> list[CheckedFinding]:
    """Every finding, also those that nothing here can test."""
    by_stem = {recipe.stem: recipe for recipe in reversed(recipes)}
    return [_checked(finding, by_stem) for finding in findings]


def _checked(finding: Finding, recipes: Mapping[str, RecipeRuns]) -> CheckedFinding:
    recipe = next((recipes[name] for name in finding.recipes if name in recipes), None)

    def untested(reason: str) -> CheckedFinding:
        verdict = Verdict(f"not tested: {reason}", "untested")
        return CheckedFinding(finding, recipe.stem if recipe else None, verdict)

    if recipe is None:
        return untested(f"{' or '.join(finding.recipes)} is not in this report")
    ours, theirs = recipe.row(finding.ours), recipe.row(finding.theirs)
    if ours is None or theirs is None:
        lacking = [name for name, row in ((finding.ours, ours), (finding.theirs, theirs)) if row is None]
        return untested(f"no finished run of {' and '.join(lacking)}")
    if _same(ours, theirs):
        return untested("the two rows are one and the same run here")
    columns = Columns.of(ours.runs[0].scores, recipe.teacher)
    if finding.benchmark in columns.not_beaten:
        head = BENCHMARKS[finding.benchmark].column
        return untested(f"{head} is left out here: the teacher does not clearly beat the baselines")
    figure = columns.figures.get(finding.benchmark, lambda run: None)
    difference = paired_difference(ours.by_seed(figure), theirs.by_seed(figure))
    if difference is None:
        return untested("no seed in common, or no score")
    tone = _tone(difference, alike=finding.alike)
    words = WORDS[tone] if difference.interval is not None else "not clear (one seed)"
    return CheckedFinding(finding, recipe.stem, Verdict(words, tone), difference)


def _same(ours: RowRuns, theirs: RowRuns) -> bool:
    """Whether two rows are the same training, as where one stand-in replaces the two models that they differ in."""
    one, other = ({run.seed: run.info.get("key") for run in row.runs} for row in (ours, theirs))
    return one == other and None not in one.values()


def _tone(difference: Estimate, *, alike: bool) -> Tone:
    if difference.interval is None:
        return "unclear"
    if alike:
        within = difference.low >= -ALIKE and difference.high <= ALIKE
        beyond = difference.low > ALIKE or difference.high < -ALIKE
        return "agrees" if within else "opposite" if beyond else "unclear"
    tones: dict[int, Tone] = {1: "agrees", -1: "opposite", 0: "unclear"}
    return tones[difference.side]


def table(findings: Sequence[CheckedFinding]) -> Table | None:
    """The findings whose recipe is in the report; None where there is none."""
    heads = ("the paper's finding", "paper", "here", "verdict", "tested in", "said by")
    lines = []
    for each in findings:
        if each.recipe:
            printed = each.finding.printed
            cells = (
                None if printed is None else Number(printed, difference=True),
                None if each.difference is None else Number.minus(each.difference),
                each.verdict,
                each.recipe,
                f"[{each.finding.tag}] {each.finding.source}",
            )
            lines.append(Line(each.finding.claim, cells))
    caption = (
        "Here: the first row minus the second, paired by seed, ± half of the 95 % t interval. A finding agrees or is "
        "opposite when that interval excludes 0; rows that the paper calls alike agree when it lies within "
        f"{ALIKE:g} point of 0. Not corrected for the number of findings. [S] stated by the authors, [C] "
        f"computed from numbers that they print, [I] inferred, [T] a third party's reading of the paper. {MDE}."
    )
    return Table(heads, tuple(lines), caption=caption) if lines else None


def summary(findings: Sequence[CheckedFinding]) -> str:
    """How many agree, how many don't, and what is not in the table."""
    counts = Counter(each.verdict.tone for each in findings)
    counted = ", ".join(f"{words} {counts[tone]}" for tone, words in WORDS.items())
    text = f"{len(findings)} findings: {counted}, not tested {counts['untested']}."
    absent = [each.finding.recipes[0] for each in findings if each.recipe is None]
    if absent:
        names = ", ".join(dict.fromkeys(absent))
        text += f" For {len(absent)} of them the recipe is not in this report: {names}."
    return text
