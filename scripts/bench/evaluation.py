"""Level 5: answers per second, in batches and one by one, for a model and questions that ship with the package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lmms_eval.api.instance import Instance

from scripts.bench.results import Level
from scripts.bench.rounds import LONG, QUICK, Effort, Running, Variant, measure, uncounted
from switchkd_cli.benchmarks import TEN
from switchkd_cli.engine.build import load
from switchkd_cli.engine.evaluation.generate import GreedyModel
from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel
from switchkd_cli.engine.evaluation.score_model import score_request
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.recipe.named_files import locate
from switchkd_cli.recipe.schema import Evaluation

MODEL = "playground:teacher"
"""The only complete trained model that ships: an untrained one's answers would all reach the limit."""
BATCH = 64  # the quickstart's


class Recorder(LmmsModel):
    """Record lmms-eval's requests and images, to repeat them without its data sets."""

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        self.requests, self.shown = list(requests), {}
        return super().generate_until(requests)

    def answer(self, items: Sequence[Item]) -> list[str]:
        self.shown |= {(item.task, item.doc_id): item.images for item in items}
        return [""] * len(items)

    def again(self) -> list[Instance]:
        """Return the same requests, with their images in memory."""
        return [replace(request, arguments=self._with_pictures(request.args)) for request in self.requests]

    def _with_pictures(self, arguments: tuple) -> tuple:
        prompt, settings, _, doc_id, task, split = arguments
        pictures = self.shown[task, doc_id]
        return prompt, settings, lambda doc: pictures, doc_id, task, split


def measure_level(quick: bool) -> Level:
    return measure_at(TEN, 4 if quick else 20, QUICK if quick else LONG)


def measure_at(benchmarks: Sequence[str], items: int, effort: Effort) -> Level:
    """Measure the level on N items of each benchmark, without lmms-eval's own time and without reading images."""
    asked, model, written = recorded(benchmarks, items), load(locate(MODEL)), {}
    variants = [
        Variant(name, partial(_answering, name, model, asked, batch, written))
        for name, batch in (("one by one", 1), (f"batches of {BATCH}", BATCH))
    ]
    rows = measure("answers", variants, effort)
    alone, batched = written.values()
    same = sum(a == b for a, b in zip(alone, batched, strict=True)) / len(alone)
    setting = {"model": MODEL, "benchmarks": len(benchmarks), "questions": len(alone), "same answers": f"{same:.1%}"}
    return Level(title="evaluation: answers a second", setting=setting, rows=rows)


def recorded(benchmarks: Sequence[str], items: int) -> Recorder:
    """Return the requests of N items of each benchmark."""
    asked = Recorder(playground=True)
    wanted = Evaluation(world="playground", benchmarks=tuple(benchmarks), split="test", items=items, seed=0)
    with TemporaryDirectory() as folder:
        score_request(asked, wanted, Path(folder))
    return asked


@contextmanager
def _answering(
    name: str, model: VisionLanguageModel, asked: Recorder, batch: int, written: dict[str, list[str]]
) -> Iterator[Running]:
    """Return a reader without any cached image, each time."""

    def answers() -> None:
        reader = GreedyModel(model, batch=batch, playground=True)
        reader.task_dict = asked.task_dict
        written[name] = reader.generate_until(asked.again())
        seconds["answering"] = sum(reader.seconds.values())

    def figures() -> dict[str, float]:
        return {"answers/s": len(written[name]) / seconds["answering"]}

    seconds: dict[str, float] = {}
    yield Running({"answers": answers}, figures=figures, peak=uncounted)
