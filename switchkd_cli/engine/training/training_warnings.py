"""Warnings of a training: derived from diagnostics, each emitted once; images that are missing, or that the teacher doesn't see."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from switchkd_cli.engine.batch import PREFERRED, Batch, ImageInput
from switchkd_cli.engine.training.diagnostics import SHARE
from switchkd_cli.engine.training.figures import Figure, measure
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Stage
from switchkd_cli.report.grouping import grouped

SMOOTHED = 3
"""Diagnosed steps that a figure is averaged over: one micro-batch is too noisy to warn on."""
CLAMPED = 0.5
"""Share of positions whose k is a bound instead of the knee, above which a warning says so."""
FAINT = 1e-3
"""Ratio of a term's gradient to the strongest one on the same part, below which the term is lost in the noise."""
STARVED = 0.05
"""Share of a term's gradient on the vision tower, below which the adapter behind the tower takes nearly all of it."""


def check_images(stages: Sequence[Stage], has_images: Mapping[str, bool]) -> None:
    """Raise UserError for parts and terms that need images, in stages whose data have none that can be used.

    `has_images` says of each data set whether it has one.
    """
    problems, hints = [], []
    for stage in (stage for stage in stages if not any(has_images.get(name, True) for name in stage.trained_on)):
        parts = [part for part in stage.train if part != "language"]
        # without an image there is nothing to compare of what an image gives
        of_images = {t.name for t in stage.objective if t.signature.of_images}
        across = {name for name, path in stage.readings.items() if len(path.models) > 1 or path.images != "given"}
        needing_image = [t for t in stage.objective if t.on == "image" or t.name in of_images or across & t.paths]
        terms = [term.name for term in needing_image if term.weight]
        needing = [*(f"train: {part}" for part in parts), *(f"objective: {term}" for term in terms)]
        none = f"needs images, and no usable example of {', '.join(stage.trained_on)} has one"
        problems += [f"stages.{stage.name}.{who} {none}" for who in needing]
        hints += [remedy(stage, parts, terms)] if needing else []
    if problems:
        raise UserError(problems, hint="; ".join(hints))


def check_pairs(stages: Sequence[Stage], has_pairs: Mapping[str, bool]) -> None:
    """Raise UserError for terms on preferences, in stages whose data have none. `has_pairs` says of each data set whether it has."""
    problems = []
    for stage in (stage for stage in stages if not any(has_pairs.get(name, True) for name in stage.trained_on)):
        terms = [f"{term.name} is on: {term.on}" for term in stage.objective if term.on in PREFERRED and term.weight]
        none = f"and no row of {', '.join(stage.trained_on)} has a preferred answer and a rejected one"
        problems += [f"stages.{stage.name}.objective.{term}, {none}" for term in terms]
    if problems:
        raise UserError(problems, hint="train on rows with preferences (docs/data.md), or leave `on` out")


def remedy(stage: Stage, parts: Collection[str], terms: Collection[str]) -> str:
    """Return what to type if a stage trains nothing of some parts or terms."""
    rest = [part for part in stage.train if part not in parts]
    ways = [f"stages.{stage.name}.train='[{', '.join(rest)}]'"] if parts and rest else []
    ways += [f"take {', '.join(terms)} out of stages.{stage.name}.objective"] if terms else []
    return " or ".join([*ways, f"give it examples that train them (stages.{stage.name}.data)"])


class TrainingWarnings:
    """Turns the figures of a stage's diagnosed steps into warnings.

    `empty` counts the steps in which no term had a position or an image to compare; `idle` are the terms that never had
    one.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.idle, self.empty = [term.name for term in stage.objective if term.weight], 0
        self.recent: deque[Mapping[str, float]] = deque(maxlen=SMOOTHED)
        self.emitted: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return recent figures and the warnings emitted, as plain values."""
        recent = [dict(figures) for figures in self.recent]
        return {"seen": recent, "said": sorted(self.emitted), "idle": self.idle, "empty": self.empty}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.idle, self.empty = state.get("idle", []), state.get("empty", 0)  # older checkpoints lack them
        self.recent = deque(state["seen"], maxlen=SMOOTHED)
        self.emitted = set(state["said"])

    def count(self, compared: Collection[str]) -> None:
        """Take in the terms that had something to compare in a step."""
        self.idle = [term for term in self.idle if term not in compared]
        self.empty += not compared

    def check(self, step: int, figures: Mapping[str, float], *, last: bool) -> list[tuple[str, str]]:
        """Return the new warnings after a diagnosed step (from 0): what each is about, and its text.

        There are none until enough steps can be averaged, except at the last step.
        """
        self.recent.append(figures)
        if not last and len(self.recent) < SMOOTHED:
            return []
        every = grouped(pair for each in self.recent for pair in each.items())
        means = {name: fmean(values) for name, values in every.items()}
        new = [(about, text) for about, text in self._warnings(means) if about not in self.emitted]
        self.emitted |= {about for about, _ in new}
        return [(about, f"{text} at step {step + 1}") for about, text in new]

    def _warnings(self, means: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """Yield what each warning is about, and its text."""
        teacher, student = means.get("teacher_ce"), means.get("student_ce")
        if teacher is not None and student is not None and teacher >= student:
            both = f"cross-entropy {teacher:.3g} against {student:.3g} nats"
            yield "teacher", f"the teacher is not better than the student on the training tokens: {both}"
        for way, bound in (("raised", "min_k"), ("cut", "max_k")):
            shares = {" ".join(name.split("/")[1:-1]): means[name] for name in means if name.endswith(f"/{way}")}
            if above := ", ".join(f"{leader} {share:.0%}" for leader, share in shares.items() if share > CLAMPED):
                yield f"k {way}", f"effective k sits at {bound}, not at the knee: {above} of the positions"
        for name, reached in means.items():
            if name.startswith(SHARE) and reached < STARVED:
                of_term, slower = name.removeprefix(SHARE), f"stages.{self.stage.name}.lr_scale='{{adapter: 0.1}}'"
                cure = f"slow the adapter ({slower}), or leave it out of train"
                told = f"{reached:.2g} of {of_term}'s gradient reaches the vision tower: {cure}"
                yield f"adapter and {of_term}", told
        for part in self.stage.train:
            names = [name.split("/") for name in means if name.startswith("grad/")]
            norms = {term: means[f"grad/{term}/{of}"] for _, term, of in names if of == part}
            strongest = max(norms, key=norms.__getitem__, default="")
            for term, norm in norms.items():
                if norm < FAINT * norms[strongest]:
                    share = f"{norm / norms[strongest]:.1g} of {strongest}'s"
                    both = f"({norm:.2g} against {norms[strongest]:.2g})"
                    yield f"gradient of {term} on {part}", f"{term}'s gradient on the {part} is {share} {both}"


LEAST = 0.1
"""Share by which an answer's own image must lower the loss.

In the playground it is nine tenths for a teacher that sees. Blank images alone don't tell: they raise the loss of a random
projector by 15 to 50 %. Of a teacher that doesn't see, the loss with own and with other images differs by up to 8 % in 16 rows.
"""
SHOWN = {"images": "with their images", "blank_images": "with blank ones", "other_images": "with another row's"}
CHECK = "check its checkpoint, image processor, image token and feature layer, and the rows' images (docs/faq.md)"


@torch.no_grad()
def look(trainer: Trainer, group: Sequence[Batch]) -> tuple[dict[str, float], str] | None:
    """Show the teacher the examples of a step that have images, of all processes; None if there are none.

    Returns the mean cross-entropy of the answers' tokens in nats, by which images it was shown, and a warning if its own are
    no help, else "". Another row's image: see `Batch.with_other_images`; where there is none, it can't be compared.

    Every process must call this. No random number is drawn: the teacher is in eval mode; its cached states aren't used.
    """
    device, bf16 = trainer.replica.device, trainer.precision == "bf16"
    figures, paths = [Figure(loss="loss", of="teacher")], trainer.paths
    sums = torch.zeros(5, dtype=torch.float64)
    seen: dict[str, ImageInput] = {}

    def uncached(batch: Batch, names: Collection[str], keep: Tensor) -> dict[str, Tensor]:
        return {"teacher.hidden": paths.teacher_hidden_states(batch, keep)}

    pictured = trainer.processes.gather(any(each.images for each in group))
    together = any(pictured) and len(pictured) > 1  # a sharded teacher's passes are those of all processes
    alone = (replace(each.reading("teacher"), others={}) for each in group if each.images or together)
    for batch in (each.to(device) for each in alone):
        keep = batch.predicting("answer") & batch.has_image[:, None]
        other, exchanged = batch.with_other_images(seen)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            shown = batch, batch.with_blank_images(), other
            losses = [measure(figures, uncached, each, keep, paths.heads())["loss"].sum().item() for each in shown]
        sums += torch.tensor([*losses, int(keep.sum()), int(keep[exchanged].sum())], dtype=torch.float64)
    *losses, count, compared = trainer.processes.sum(sums).tolist()
    if not count:
        return None
    own, blank, other = means = [loss / count for loss in losses]
    sees = own <= (1 - LEAST) * blank and (not compared or own <= (1 - LEAST * compared / count) * other)
    found = dict(zip(SHOWN, means if compared else means[:2], strict=False))
    told = ", ".join(f"{value:.3g} nats {SHOWN[name]}" for name, value in found.items())
    return found, "" if sees else f"the teacher may not see: its loss on the answers is {told}: {CHECK}"
