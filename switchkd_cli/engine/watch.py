"""What a stage's diagnostics give away while it runs, said once each, with the figure."""

from collections import deque
from collections.abc import Iterator, Mapping
from statistics import fmean

from switchkd_cli.recipe.schema import Stage

SMOOTHED = 3
"""Diagnosed steps that a figure is averaged over: one micro-batch holds too few tokens to accuse anything."""
NO_GAP = 1e-4
"""Nats. Equal towers differ by rounding, 1e-6 or less; a tower that was trained, by 1e-2 and more."""
CLAMPED = 0.5
"""Share of positions whose knee the bounds overrule: past half, k is the bound's choice and not the knee's."""
FAINT = 1e-3
"""A gradient's share of the strongest one on the same part: below it, the term is lost in the step's noise."""


class Watch:
    """Reads the figures of a stage's diagnosed steps. A warning is an event: what it is `about` and its `text`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.seen: deque[Mapping[str, float]] = deque(maxlen=SMOOTHED)
        self.said: set[str] = set()

    def state_dict(self) -> dict[str, list]:
        """What was seen and said so far, as plain values."""
        return {"seen": [dict(figures) for figures in self.seen], "said": sorted(self.said)}

    def load_state_dict(self, state: Mapping[str, list]) -> None:
        self.seen.clear()
        self.seen.extend(state["seen"])
        self.said = set(state["said"])

    def look(self, step: int, figures: Mapping[str, float], *, last: bool) -> list[dict[str, str]]:
        """What to say after a diagnosed step (from 0) that was not said before.

        All but the switch's first gap waits for enough steps to average over, or for the last step.
        """
        self.seen.append(figures)
        found = list(self._idle_switch(figures)) if step == 0 else []
        if last or len(self.seen) == SMOOTHED:
            means = {
                name: fmean(each[name] for each in self.seen if name in each)
                for name in dict.fromkeys(name for each in self.seen for name in each)
            }
            found += [*self._no_better(step, means), *self._clamped(step, means), *self._faint(step, means)]
        new = [(about, text) for about, text in found if about not in self.said]
        self.said |= {about for about, _ in new}
        return [{"about": about, "text": text} for about, text in new]

    def _idle_switch(self, figures: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        frozen = "vision" not in self.stage.train or self.stage.lr_scale.get("vision") == 0
        gap = figures.get("switch_gap")
        if frozen and gap is not None and gap < NO_GAP:
            names = ", ".join(term.name for term in self.stage.objective if "switch" in term.paths)
            seen = f"the switch gap is {gap:.1g} nats at step 0 and the vision tower is frozen"
            yield "idle switch", f"{seen}: {names} can't train anything"

    def _no_better(self, step: int, means: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if "teacher_ce" not in means or "student_ce" not in means:
            return
        teacher, student = means["teacher_ce"], means["student_ce"]
        if teacher >= student:
            both = f"cross-entropy {teacher:.3g} against {student:.3g} nats at step {step + 1}"
            yield "teacher", f"the teacher is not better than the student on the training tokens: {both}"

    def _clamped(self, step: int, means: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for way, bound in (("raised", "min_k"), ("cut", "max_k")):
            shares = {name.split("/")[1]: means[name] for name in means if name.endswith(f"/{way}")}
            told = ", ".join(f"{path} {share:.0%}" for path, share in shares.items() if share > CLAMPED)
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
