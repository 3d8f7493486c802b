"""Check the paper's findings, listed in claims.yaml, on our runs: same direction, the opposite one, or not clear."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.package_data import read_yaml
from switchkd_cli.report.document import Column, Number, Table, Tone, Verdict
from switchkd_cli.report.results.recipe_runs import RecipeRuns
from switchkd_cli.report.results.row_runs import mean_of
from switchkd_cli.report.tables.columns import AVERAGE, Columns
from switchkd_cli.report.texts import CAPTIONS, MDE

ALIKE = 1.0
"""Points: two rows are as good as one another when the whole interval of their difference is this close to 0."""
WORDS: Mapping[Tone, str] = {"agrees": "agrees", "opposite": "opposite", "unclear": "not clear"}


class Finding(NamedTuple):
    """`ours` lies above `theirs`, by `printed` points if the paper says by how much."""

    claim: str
    tag: Literal["S", "C", "I", "T"]
    source: str
    recipes: Sequence[str]
    """Where it can be tested; the first of them that a report holds is taken."""
    ours: str
    theirs: str
    printed: float | None
    benchmark: str = AVERAGE
    alike: bool = False
    """Whether the claim is that the two rows are as good as one another."""


FINDINGS = tuple(Finding(**entry) for entry in read_yaml(__file__, "claims.yaml"))


class CheckedFinding(NamedTuple):
    """A finding, the recipe whose runs check it, and the verdict."""

    finding: Finding
    recipe: str | None
    verdict: Verdict
    difference: Number | None
    """Paired by seed; None where the finding could not be tested."""


def check_findings(recipes: Sequence[RecipeRuns], findings: Sequence[Finding] = FINDINGS) -> list[CheckedFinding]:
    """Every finding, also those that nothing here can test."""
    by_stem = {recipe.stem: recipe for recipe in reversed(recipes)}
    checked = []
    for finding in findings:
        recipe = next((by_stem[name] for name in finding.recipes if name in by_stem), None)
        found = _difference(finding, recipe)
        if isinstance(found, str):
            verdict, difference = Verdict(f"not tested: {found}", "untested"), None
        else:
            tone = _tone(found, alike=finding.alike)
            words = WORDS[tone] if found.interval is not None else "not clear (one seed)"
            verdict, difference = Verdict(words, tone), found
        checked.append(CheckedFinding(finding, recipe.stem if recipe else None, verdict, difference))
    return checked


def _difference(finding: Finding, recipe: RecipeRuns | None) -> Number | str:
    """The difference that the finding is about, or why it can't be tested."""
    if recipe is None:
        return f"{' or '.join(finding.recipes)} is not in this report"
    ours, theirs = recipe.row(finding.ours), recipe.row(finding.theirs)
    if lacking := [name for name, row in ((finding.ours, ours), (finding.theirs, theirs)) if not row.runs]:
        return f"no finished run of {' and '.join(lacking)}"
    if recipe.refusal:
        return "the runs can't be compared, see its chapter"
    keys, others = ({run.seed: run.info.get("key") for run in row.runs} for row in (ours, theirs))
    # as where one stand-in replaces the two models that they differ in
    if keys == others and None not in keys.values():
        return "the two rows are one and the same run here"
    columns = Columns.of(ours.runs[0].scores, recipe.teacher)
    if finding.benchmark in columns.not_beaten:
        head = BENCHMARKS[finding.benchmark].column
        return f"{head} is left out here: the teacher does not clearly beat the baselines"
    score = mean_of(columns.figures.get(finding.benchmark, ()))
    return ours.minus(theirs, score) or "no seed in common, or no score"


def _tone(difference: Number, *, alike: bool) -> Tone:
    tones: Mapping[int, Tone] = {1: "agrees", -1: "opposite", 0: "unclear"}
    if not alike or difference.interval is None:
        return tones[difference.side or 0]
    low, high = difference.ends.low, difference.ends.high
    return "agrees" if max(-low, high) <= ALIKE else "opposite" if max(low, -high) > ALIKE else "unclear"


def table(findings: Sequence[CheckedFinding]) -> Table | None:
    """The findings whose recipe is in the report; None where there is none."""
    columns: tuple[Column, ...] = (
        ("the paper's finding", "finding.claim"),
        ("paper", lambda each: None if (p := each.finding.printed) is None else Number(p, difference=True)),
        ("here", "difference"),
        ("verdict", "verdict"),
        ("tested in", "recipe"),
        ("said by", lambda each: f"[{each.finding.tag}] {each.finding.source}"),
    )
    tested = [each for each in findings if each.recipe]
    return Table.of(tested, columns, caption=CAPTIONS["findings"].format(alike=ALIKE, mde=MDE)) if tested else None


def summary(findings: Sequence[CheckedFinding]) -> str:
    """How many agree, how many don't, and what is not in the table."""
    counts = Counter(each.verdict.tone for each in findings)
    counted = ", ".join(f"{words} {counts[tone]}" for tone, words in WORDS.items())
    text = f"{len(findings)} findings: {counted}, not tested {counts['untested']}."
    if absent := [each.finding.recipes[0] for each in findings if each.recipe is None]:
        names = ", ".join(dict.fromkeys(absent))
        text += f" For {len(absent)} of them the recipe is not in this report: {names}."
    return text
