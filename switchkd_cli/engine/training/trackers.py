"""The trackers of a run (TensorBoard, Weights & Biases, ...), which show its metrics; one that fails ends no training.

They are accelerate's, and registry.yaml says how each is started. metrics.jsonl has all figures that they are given.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from accelerate import tracking
from PIL.Image import Image
from torch.utils._pytree import tree_map

from switchkd_cli.engine.hub import one_line
from switchkd_cli.files.atomic import read_json, write_json
from switchkd_cli.recipe.run import Run
from switchkd_cli.recipe.yaml_positions import fields_of
from switchkd_cli.registry import TRACKERS
from switchkd_cli.runs.run_folder import RunFolder

PATIENCE = 60.0  # seconds that a training waits for a tracker; at its start, which imports it, three times as long
MAX_FAILURES = 10  # in a row, after which a tracker is given nothing more

# accelerate's log would need its PartialState, which sets numbers of threads and joins processes in its own way
tracking.logger = logging.getLogger(tracking.__name__)


class Tracker:
    """One of accelerate's trackers, in a thread of its own: its calls raise nothing here, and end or are given up.

    In that thread it can't replace the handlers of signals either, by which a stopped run is saved.
    """

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self.name, self.entry, self.tell = name, TRACKERS[name], tell
        self.tracker: Any = None  # accelerate's, as soon as it is started
        self.resume: dict[str, Any] = {}  # arguments that resume its run
        self.usable = True
        self.calls = self.failed = self.in_a_row = 0
        self._queue: SimpleQueue[tuple[Callable[[], object], Future[object]]] = SimpleQueue()
        Thread(target=self._work, daemon=True, name=f"tracker {name}").start()

    def _work(self) -> None:
        while True:
            function, answer = self._queue.get()
            try:
                answer.set_result(function())
            except BaseException as error:  # noqa: BLE001 (some raise SystemExit)
                answer.set_exception(error)

    def call(self, function: Callable[[], object], patience: int = 1) -> None:
        """Call the function in the thread and wait for its end; a failure is counted, and the first one told.

        A tracker that could not start, does not answer, or fails ten times in a row is given nothing more.
        """
        self.calls += 1
        if self.usable:
            answer: Future[object] = Future()
            self._queue.put((function, answer))
            try:
                if (error := answer.exception(patience * PATIENCE)) is None:
                    self.in_a_row = 0
                    return
                problem = f"{type(error).__name__}: {one_line(error)}"
                self.in_a_row += 1
                self.usable = self.tracker is not None and self.in_a_row < MAX_FAILURES
            except TimeoutError:
                problem, self.usable = f"no answer for {patience * PATIENCE:.0f} seconds", False
            if not self.failed:
                self.tell(f"{self.name}: {problem}: the training continues without it")
        self.failed += 1

    def start(self, arguments: Mapping[str, Any]) -> None:
        """Start accelerate's tracker with these arguments."""

        def start() -> None:
            tracker = tracking.LOGGER_TYPE_TO_CLASS[self.name](**arguments)
            tracker.main_process_only = False  # this is the first process; accelerate would join them to find out
            tracker.start()
            self.resume = _filled(self.entry.get("resume", {}), {"run": tracker.tracker})
            self.tracker = tracker

        self.call(start, patience=3)

    def describe(self, run: Run) -> None:
        """Give it the resolved recipe, as text or as one value for each field."""
        if self.entry.get("recipe") == "text":
            self.call(lambda: self.tracker.log({"recipe": run.text}, step=0))
        else:
            fields = dict(fields_of(run.config.model_dump(mode="json", exclude={"rows", "controls"})))
            self.call(lambda: self.tracker.store_init_configuration(fields))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Give it figures by name."""
        named = {name.replace("/", self.entry.get("separator", "/")): value for name, value in figures.items()}
        self.call(lambda: self.tracker.log(named, step=step))

    def show(self, images: Mapping[str, np.ndarray]) -> None:
        """Give it images by name, each [1, height, width, 3]. Its entry must say how."""
        self.call(lambda: self.tracker.log_images(images, step=0, **self.entry["images"]))

    def finish(self) -> None:
        """End it, and tell how many calls failed."""
        self.call(lambda: self.tracker.finish())
        if self.failed:
            self.tell(f"{self.name}: {self.failed} of {self.calls} calls failed; metrics.jsonl has all figures")


class Trackers(ExitStack):
    """The trackers of a run, from `start` to the end of the block. Their steps are counted over all stages.

    A resumed run resumes its trackers' runs, by what `resume.json` in a tracker's folder says.
    """

    def __init__(self, run: Run, folder: RunFolder) -> None:
        super().__init__()
        self.run, self.folder = run, folder
        self.steps: dict[str, int] = {line["stage"]: line["steps"] for line in folder.entries() if "steps" in line}
        self.trackers: list[Tracker] = []

    def start(self) -> None:
        """Start the trackers that the recipe names; a second call does nothing."""
        for name in self.run.config.trackers if not self.trackers else ():
            tracker = Tracker(name, lambda text: self.folder.log({"event": "tracker", "text": text}))
            self.trackers.append(tracker)
            own = self.folder.trackers / name
            places = {"folder": own, "run_folder": self.folder.path, **self.run.names, "seed": self.run.seed}
            if "resume" in tracker.entry or "{folder}" in str(tracker.entry):
                own.mkdir(parents=True, exist_ok=True)
            for variable, value in _filled(tracker.entry.get("environment", {}), places).items():
                if variable not in os.environ:
                    os.environ[variable] = value
                    self.callback(os.environ.pop, variable, None)
            self.callback(tracker.finish)
            known = read_json(own / "resume.json")
            tracker.start(_filled(tracker.entry["arguments"], places) | (known or {}))
            if known is None or tracker.entry.get("recipe") == "again":
                tracker.describe(self.run)
            if known is None and tracker.resume:
                write_json(own / "resume.json", tracker.resume)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to the run's metrics, and give the trackers its figures if it is about a step."""
        self.folder.log(line)
        if "step" in line:
            stage = line["stage"]
            self.steps[stage] = line.get("steps", self.steps.get(stage, 0))
            step = sum(self.steps.values()) - self.steps[stage] + line["step"]
            self._give(stage, {key: value for key, value in line.items() if key not in ("step", "steps")}, step)

    def scores(self, results: Mapping[str, Any]) -> None:
        """Give the trackers the benchmarks' scores, 0 to 100, and how the student compares with its teacher."""
        self.start()
        last = sum(self.steps.values())
        self._give("scores", {task: entry["score"] for task, entry in results["scores"].items()}, last)
        for about in ("fidelity", "eyes_or_reader"):
            self._give(about, results.get(about, {}), last)

    def _give(self, about: str, line: Mapping[str, Any], step: int) -> None:
        figures = {f"{about}/{key}": float(value) for key, value in line.items() if isinstance(value, int | float)}
        for tracker in self.trackers if figures else ():
            tracker.log(figures, step)

    def images(self, images: Iterable[Image]) -> None:
        """Give the images to the trackers that take any, unless the run has taken steps before; else none is opened."""
        takers = [tracker for tracker in self.trackers if "images" in tracker.entry and not self.steps]
        arrays = {f"images/{i}": np.asarray(image)[None] for i, image in enumerate(images if takers else ())}
        for tracker in takers:
            tracker.show(arrays)


def _filled(value: Any, places: Mapping[str, Any]) -> Any:
    """Return text, or texts in lists and mappings, with the `{place}`s filled in."""
    return tree_map(lambda leaf: leaf.format(**places) if isinstance(leaf, str) else leaf, value)
