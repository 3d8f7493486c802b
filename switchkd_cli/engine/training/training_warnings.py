"""What a stage's diagnostics give away while it runs, said once each, with the figure."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from switchkd_cli import registry
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Stage, Term

SMOOTHED = 3
"""Diagnosed steps that a figure is averaged over: one micro-batch holds too few tokens to accuse anything."""
CLAMPED = 0.5
"""Share of positions whose knee the bounds overrule: past half, k is the bound's choice and not the knee's."""
FAINT = 1e-3
"""A gradient's share of the strongest one on the same part: below it, the term is lost in the step's noise."""


def check_pictures(stages: Sequence[Stage], pictured: Mapping[str, bool]) -> None:
    """Raises UserError for parts and terms that need pictures, in stages whose data have none that can be used.

    `pictured` says of each data set whether it has one.
    """
    problems, hints = [], []
    for stage in (stage for stage in stages if not pictured.get(stage.data, True)):
        parts = [part for part in stage.train if part != "language"]
        terms = [term.name for term in stage.objective if term.weight and _looks(term)]
        for field, names in (("train", parts), ("objective", terms)):
            problems += [
                f"stages.{stage.name}.{field}: {name} needs pictures, and no usable row of {stage.data} has one"
                for name in names
            ]
        hints += [without(stage, parts, terms)] if parts or terms else []
    if problems:
        raise UserError(problems, hint="; ".join(hints))


def without(stage: Stage, parts: Collection[str], terms: Collection[str]) -> str:
    """What to type so that a stage does what it says."""
    rest = [part for part in stage.train if part not in parts]
    told = [f"stages.{stage.name}.train='[{', '.join(rest)}]'"] if parts and rest else []
    told += [f"take {', '.join(terms)} out of stages.{stage.name}.objective"] if terms else []
    return " or ".join([*told, f"give it rows that train them (stages.{stage.name}.data)"])


def _looks(term: Term) -> bool:
    """Whether a term compares what was seen, and is nothing without a picture."""
    at_pictures = term.on == "image" or registry.signature("loss", term.loss).of_images
    return at_pictures or "switch" in term.paths


class Watch:
    """Reads the figures of a stage's diagnosed steps. A warning is an event: what it is `about` and its `text`.

    Of all steps it counts those in which no term had a position or a picture to compare, `empty`; `idle` are the terms
    that never had one.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.idle, self.empty = [term.name for term in stage.objective if term.weight], 0
        self.seen: deque[Mapping[str, float]] = deque(maxlen=SMOOTHED)
        self.said: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """What was seen and said so far, as plain values."""
        seen = [dict(figures) for figures in self.seen]
        return {"seen": seen, "said": sorted(self.said), "idle": self.idle, "empty": self.empty}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.idle, self.empty = state.get("idle", []), state.get("empty", 0)  # older ones don't say
        self.seen.clear()
        self.seen.extend(state["seen"])
        self.said = set(state["said"])

    def count(self, compared: Collection[str]) -> None:
        """Takes in the terms that had something to compare in a step."""
        self.idle = [term for term in self.idle if term not in compared]
        self.empty += not compared

    def look(self, step: int, figures: Mapping[str, float], *, last: bool) -> list[dict[str, str]]:
        """What to say after a diagnosed step (from 0) that was not said before.

        It waits for enough steps to average over, or for the last step.
        """
        self.seen.append(figures)
        if not last and len(self.seen) < SMOOTHED:
            return []
        means = {
            name: fmean(each[name] for each in self.seen if name in each)
            for name in dict.fromkeys(name for each in self.seen for name in each)
        }
        found = [*self._no_better(step, means), *self._clamped(step, means), *self._faint(step, means)]
        new = [(about, text) for about, text in found if about not in self.said]
        self.said |= {about for about, _ in new}
        return [{"about": about, "text": text} for about, text in new]

    def _no_better(self, step: int, means: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if "teacher_ce" not in means or "student_ce" not in means:
            return
        teacher, student = means["teacher_ce"], means["student_ce"]
        if teacher >= student:
            both = f"cross-entropy {teacher:.3g} against {student:.3g} nats at step {step + 1}"
            yield "teacher", f"the teacher is not better than the student on the training tokens: {both}"

    def _clamped(self, step: int, means: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for way, bound in (("raised", "min_k"), ("cut", "max_k")):
            shares = {
                " ".join(name.split("/")[1:-1]): means[name] for name in means if name.endswith(f"/{way}")
            }
            told = ", ".join(f"{leader} {share:.0%}" for leader, share in shares.items() if share > CLAMPED)
            if told:
                sits = f"effective k sits at {bound}, not at the knee"
                yield f"k {way}", f"{sits}: {told} of the positions at step {step + 1}"

    def _faint(self, step: int, means: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for part in self.stage.train:
            norms = {
                name.split("/")[1]: value
                for name, value in means.items()
                if name.startswith("grad/") and name.endswith(f"/{part}")
            }
            strongest = max(norms, key=norms.__getitem__, default="")
            for term, norm in norms.items():
                if norm < FAINT * norms[strongest]:
                    share = f"{norm / norms[strongest]:.1g} of {strongest}'s"
                    both = f"({norm:.2g} against {norms[strongest]:.2g}) at step {step + 1}"
                    yield (
                        f"gradient of {term} on {part}",
                        f"{term}'s gradient on the {part} is {share} {both}",
                    )
