"""The training loop of one stage, from its first optimiser step (or the checkpoint that it resumes from) to its last."""

import math
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from switchkd_cli.distributed import stopping
from switchkd_cli.distributed.stopping import Stopped
from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.data.conversation import Conversations, Examples, Variants
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training import data_loader
from switchkd_cli.engine.training.checkpointing import CheckpointWriter, random_state, set_random_state
from switchkd_cli.engine.training.chunked import GRADIENT, LOSS
from switchkd_cli.engine.training.oom import out_of_memory, peak_memory_mib
from switchkd_cli.engine.training.own_answers import OwnAnswers
from switchkd_cli.engine.training.processes import ALONE, Processes
from switchkd_cli.engine.training.rounds import Rounds, row_sums
from switchkd_cli.engine.training.trainer import NonFinite, Trainer
from switchkd_cli.engine.training.training_warnings import TrainingWarnings, look, remedy
from switchkd_cli.engine.training.validation import Validator
from switchkd_cli.errors import CRASH, MACHINE, UserError
from switchkd_cli.files.atomic import append_json_lines
from switchkd_cli.recipe.schema import Stage

Log = Callable[[dict], None]
DIAGNOSED = 20  # about how many steps of a stage are diagnosed
MAX_SKIPPED = 10  # steps in a row that may change no weight
MAX_NAMED = 5  # examples named in a message; a file lists all of them


class Loop:
    """A stage's training: `state_dict` is all that its next step depends on.

    Which examples come next follows from `step`, the seed and, with a mixer, the state of `rounds`; the weights that are not
    trained follow from the recipe and the stages before. All random numbers start from the seed, so a stage doesn't depend on what ran before it.
    `held_out` are the examples of the stage's validation; `settings` are `Trainer`'s.
    """

    def __init__(
        self,
        stage: Stage,
        paths: Paths,
        data: Examples,
        *,
        seed: int,
        log: Log,
        writer: CheckpointWriter | None = None,
        processes: Processes = ALONE,
        check: bool = False,
        held_out: Conversations | None = None,
        **settings: Any,
    ) -> None:
        set_seed(seed)
        self.stage, self.data, self.log, self.writer, self.processes = stage, data, log, writer, processes
        self.check = check
        self.steps = data_loader.count_steps(stage, len(data))
        self.trainer = Trainer(stage, paths, self.steps, seed=seed, processes=processes, **settings)
        self.warnings = TrainingWarnings(stage)
        spec = stage.validation
        self.validation = Validator(spec, held_out, self.trainer) if spec and held_out is not None else None
        self.rounds = Rounds(stage, data, self.steps, seed)
        self.answers = OwnAnswers(self.trainer, data, seed) if stage.own_answers else None
        self.step = 0  # optimiser steps taken
        self.seconds = 0.0  # that they took
        self.skipped = 0  # the last of them in a row that changed no weight
        self.looked = not stage.needs_teacher  # whether the teacher was shown blank images

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "looked": self.looked,
            "random": random_state(),
            "watch": self.warnings.state_dict(),
            **({"validation": self.validation.state_dict()} if self.validation else {}),
            **self.rounds.state_dict(),
            **self.trainer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken. Raises ValueError for the state of another training."""
        self.trainer.load_state_dict(state)
        self.warnings.load_state_dict(state["watch"])
        if self.validation is not None:
            self.validation.load_state_dict(state["validation"])
        self.rounds.load_state_dict(state)
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        self.looked = state.get("looked", True)  # older checkpoints lack it
        set_random_state(state["random"])

    def run(self) -> None:
        """Take the steps that are left. On a stop signal, save after the current step and raise Stopped.

        Raises UserError (code MACHINE) when memory runs out or a data worker dies; older checkpoints stay.
        """
        began = time.monotonic() - self.seconds
        with self.processes.needed(), closing(self._groups()) as groups:
            for loader, group, step_began in groups:
                waited = time.monotonic() - step_began
                last = self.step == self.steps - 1
                diagnosed = last or self.step % math.ceil(self.steps / DIAGNOSED) == 0
                checked = self.check and self.step == 0
                try:
                    if not self.looked:
                        self._look(group)
                    of_answers: dict[str, float] = {}
                    if self.answers is not None:
                        group, of_answers = self.answers(group, self.step)
                    figures, non_finite = self.trainer.step(group, diagnosed=diagnosed, checked=checked)
                    now = time.monotonic()
                    validation = self.validation
                    if validation is not None and (last or (self.step + 1) % validation.spec.every_steps == 0):
                        figures |= validation.figures(group[-1])
                except (MemoryError, RuntimeError) as error:
                    if cause := loader.died(error) or out_of_memory(self.trainer, group, self._where, error):
                        raise cause from error
                    raise
                figures |= of_answers | self._speed(group, waited, now - step_began)
                self.seconds = time.monotonic() - began
                at = {"stage": self.stage.name, "step": self.step + 1, "steps": self.steps}
                self.log({**at, "seconds": self.seconds, **figures})
                if checked and LOSS in figures:
                    text = "chunked and dense objectives agree up to rounding:"
                    self._log("check", text, loss=figures[LOSS], gradient=figures[GRADIENT])
                elif checked:
                    self._log("check", "nothing to compare: all logits are computed at once")
                self.skipped = self.skipped + 1 if non_finite else 0
                if non_finite:
                    self._skip_step(non_finite, group)
                elif diagnosed:
                    for about, text in self.warnings.check(self.step, figures, last=last):
                        self._log("warning", text, about=about)
                self.warnings.count(self.trainer.compared)
                self.step += 1
                if self.over and not last:
                    self._log_early_end()
                if self.writer is not None and not non_finite:
                    self.writer.add_score(figures)
                self._save_or_stop()
                every = self.stage.mixer is None and self.step == math.ceil(len(self.data) / self.stage.batch)
                if every and not non_finite:
                    self.check_idle()  # every example was used once: a part without gradient will not get one later

    def _groups(self) -> Generator[tuple[data_loader.Loader, list[Batch], float], None, None]:
        """Yield, for each step, this process's micro-batches with their loader, and when it began to wait for them."""
        count = self.stage.batch // (self.trainer.micro_batch * self.processes.count)
        while self.step < self.steps and not self.over:
            if not (rows := self.rounds.left(self.step)):
                began = time.monotonic()
                figures = self.rounds.draw(self.step, self._read)
                at = {"stage": self.stage.name, "after": self.step, "seconds": time.monotonic() - began}
                self.log({"event": "round", **at, **figures})
                rows = self.rounds.left(self.step)
            with closing(self._loader(self.rounds.examples, rows)) as loader:
                end = min(self.step + len(rows) // self.stage.batch, self.steps)
                while self.step < end and not self.over:
                    began = time.monotonic()
                    yield loader, self._next(loader, count), began

    def _loader(self, data: Examples | Variants, rows: Sequence[int]) -> data_loader.Loader:
        """Return a loader of this process's micro-batches of these rows."""
        micro_batch, processes = self.trainer.micro_batch, self.processes
        mine = data_loader.rows_of_process(rows, micro_batch, processes.rank, processes.count)
        warn = partial(self._log, "data")
        return data_loader.make_loader(self.stage, self.trainer.paths.student, data, mine, micro_batch, warn)

    def _read(self, data: Examples | Variants, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return what the stage's mixer reads of these rows, in order. Every process must call this, and computes a part."""
        replica, names = self.trainer.replica, self.rounds.signature.positional
        together = self.trainer.micro_batch * self.processes.count
        batches = -(-len(rows) // together)  # of each process; what is missing is filled up from the beginning
        replica.paths.eval()
        with closing(self._loader(data, list(islice(cycle(rows), batches * together)))) as loader:
            found = (self._next(loader, 1)[0].to(replica.device) for _ in range(batches))
            each = self.processes.gather([row_sums(self.trainer, names, batch) for batch in found])
        replica.paths.train()
        in_order = [sums for in_turn in zip(*each, strict=True) for sums in in_turn]
        return {name: torch.cat([sums[name] for sums in in_order])[: len(rows)] for name in in_order[0]}

    def _look(self, group: Sequence[Batch]) -> None:
        """Log what images are worth to the teacher, in the first step that has any; warn if they are no help."""
        if (found := look(self.trainer, group)) is not None:
            self.looked, (figures, warning) = True, found
            self._log("teacher", "loss on the answers, in nats", **figures)
            if warning:
                self._log("warning", warning, about="images of the teacher")

    @property
    def over(self) -> bool:
        """Whether the stage's validation ends it before its last step."""
        return self.validation is not None and self.validation.over

    def _log_early_end(self) -> None:
        """Log that the stage ends here. `steps` says that no step is missing, to a run that finds the stage finished."""
        spec = self.stage.validation
        assert spec is not None
        text = f"ended at step {self.step} of {self.steps}: no better {spec.monitor} in {spec.patience} validations"
        self._log("warning", text, about="early end", step=self.step, steps=self.step)

    @property
    def _where(self) -> str:
        return f"stage {self.stage.name}, step {self.step + 1}"

    def _log(self, event: str, text: str, **more: Any) -> None:
        self.log({"event": event, "stage": self.stage.name, **more, "text": text})

    def _next(self, loader: data_loader.Loader, count: int) -> list[Batch]:
        """Return this process's micro-batches of the step.

        If any process has no data left, saves and raises UserError; if any got a stop signal meanwhile, saves and raises
        Stopped.
        """
        group: list[Batch] = []
        unusable, failure = [], None
        try:
            group = data_loader.next_micro_batches(loader, count)
            unusable = [row for batch in group for row in batch.unusable]
        except UserError as error:
            failure = error
        mine = stopping.stop_signal() if not group else None, unusable, failure
        for number, rows, problem in self.processes.gather(mine):
            if number is not None:
                self._stop(number)
            try:
                self.data.add_unusable(rows)
                if problem is not None:
                    raise problem
            except UserError:
                self.save(scored=False)
                raise
        return group

    def _speed(self, group: Sequence[Batch], waited: float, seconds: float) -> dict[str, float]:
        """Return the step's speed and shares of padding and waiting, over all processes, and the most memory of any."""
        mine = map(sum, zip(*(batch.sizes for batch in group), strict=True))
        sampled = self.answers.seconds if self.answers else 0.0
        each = self.processes.gather((*mine, waited, sampled, peak_memory_mib()))
        tokens, places, waits, samplings, memory = zip(*each, strict=True)
        return {
            "tokens_per_second": sum(tokens) / seconds,
            "padding": 1 - sum(tokens) / sum(places),
            "data_wait": max(waits) / seconds,
            **({"sampling": max(samplings) / seconds} if self.answers else {}),
            "memory_mib": max(memory),
        }

    def _save_or_stop(self) -> None:
        """Save if a checkpoint is due, and stop on a signal: the first process looks at the clock for all."""
        due = self.writer is not None and self.writer.is_due(self.step)
        each = self.processes.gather((due, stopping.stop_signal()))
        if each[0][0]:
            self.save()
        if numbers := [number for _, number in each if number is not None]:
            self._stop(numbers[0])

    def _stop(self, number: int) -> None:
        """Save, and raise Stopped for a signal."""
        self.save(scored=False)
        saved = "saved" if self.writer is not None else "nothing is kept"
        where = f"stage {self.stage.name}, after step {self.step} of {self.steps}"
        raise Stopped(number, f"{signal.Signals(number).name}: {where}: {saved}")

    def save(self, *, scored: bool = True) -> None:
        """Write a checkpoint of the steps taken so far. Every process must call this."""
        if self.writer is not None and self.step:
            state = self.state_dict()
            if self.processes.first:
                self.writer.save(self.step, state, scored=scored)

    def check_idle(self) -> None:
        """Raise UserError if a trained part never got a gradient, or a term never had anything to compare."""
        where, terms = f"stage {self.stage.name}", self.warnings.idle
        parts = [part for part in self.stage.train if not self.trainer.got_gradient(part)]
        in_steps = f"in {self.step} steps"
        problems = [f"{where}: {part}: no gradient reached it {in_steps}: it did not change" for part in parts]
        problems += [f"{where}: {term}: no example had what it compares {in_steps}" for term in terms]
        if problems:
            raise UserError(problems, hint=remedy(self.stage, parts, terms) + "; no model was saved")

    def finish(self) -> None:
        """Check that every part and term was trained, write the last checkpoint, log what the stage came to, and close.

        Without room for a checkpoint there may be room for the student: that is logged. Raises UserError as `check_idle`
        does, and (code CRASH) for non-finite weights.
        """
        self.check_idle()
        if empty := self.warnings.empty:
            text = f"in {empty} of {self.step} steps no term had anything to compare: they trained nothing"
            self._log("warning", text, about="empty steps")
        try:
            self.save(scored=False)
        except UserError as error:
            if error.code != MACHINE:
                raise
            self._log("warning", str(error))
        states = self.trainer.paths.states
        if states is not None and states.file is not None:  # over all processes
            counts = self.processes.gather((states.found, states.computed))
            found, computed = (sum(each) for each in zip(*counts, strict=True))
            figures = {"found": found, "computed": computed, "mib": states.file.stat().st_size / 2**20}
            self.log({"event": "teacher states", "stage": self.stage.name, **figures})
        self.trainer.close()
        self.trainer.paths.eval()

    def _skip_step(self, non_finite: list[NonFinite], group: Sequence[Batch]) -> None:
        """Record a step with non-finite figures and continue, or raise UserError (code CRASH), as the stage says.

        The step changed no weight. If it ends the run, no checkpoint is written: the existing ones are older.
        """
        texts = [f"{b.figure} is {b.value}; examples {_names(b.rows)}" for b in non_finite]
        ids = [ids for each in self.processes.gather([list(b.ids) for b in group]) for ids in each]
        if self.writer is not None and self.processes.first:
            figures = {b.figure: str(b.value) for b in non_finite}
            rows = list(dict.fromkeys(row for b in non_finite for row in b.rows))
            at = {"stage": self.stage.name, "step": self.step + 1}
            entry = {**at, "figures": figures, "rows": rows, "micro_batches": ids}
            append_json_lines(self.writer.folder.not_finite, [entry])
        if self.stage.not_finite == "skip" and self.skipped < MAX_SKIPPED:
            self._log("skipped step", "; ".join(texts), step=self.step + 1)
            return
        in_a_row = f" ({MAX_SKIPPED} such steps in a row)" if self.skipped >= MAX_SKIPPED > 1 else ""
        name = f"stages.{self.stage.name}"
        lower, skip = f"{name}.lr={self.stage.lr / 3:.1e}", f"{name}.not_finite=skip"
        hint = f"look at these examples, lower the learning rate ({lower}), or skip such steps ({skip})"
        raise UserError([f"{self._where}: {text}{in_a_row}" for text in texts], hint, CRASH)


def _names(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    return ", ".join(rows[:MAX_NAMED]) + more


def train(stage: Stage, paths: Paths, data: Examples, **settings: Any) -> None:
    """Train the stage's parts of `paths.student` in place and log a line of figures for every step.

    Warnings derived from the diagnostics (`TrainingWarnings`) are logged as events. With a `writer`, checkpoints are
    written, and training resumes from the newest. `settings` are `Loop`'s; each of several `processes` calls this with
    the same arguments.

    Raises UserError when too many examples can't be used, when a trained part never had a gradient or a term nothing to
    compare, or (exit code 1) when a term or the gradient is non-finite, naming them; Stopped for a stop signal.
    """
    loop = Loop(stage, paths, data, **settings)
    if loop.writer is not None:
        loop.writer.restore(loop.load_state_dict)
    loop.run()
    loop.finish()
