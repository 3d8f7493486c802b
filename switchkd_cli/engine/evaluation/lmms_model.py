"""What answers lmms-eval's questions: items in batches, each with a key by which runs can be paired."""

import hashlib
import time
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL.Image import Image

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.engine.exif_orientation import upright

Progress = Callable[[int, int], None]
"""Told (answered, all) after each batch."""


@dataclass
class Item:
    """One question as the stock task asks it. Its pictures are read when first looked at."""

    request: Instance
    data: Sequence  # the task's split, by doc_id
    limit: int  # new tokens
    until: tuple[str, ...]
    at_limit: bool = False  # the answer was cut there, before its end
    too_long: bool = False  # with its prompt it goes past the model's positions

    @classmethod
    def of(cls, request: Instance, task_dict: dict, longest: int) -> "Item":
        """Allows as many new tokens as the stock task does, but no more than `longest`."""
        _, settings, _, _, task, split = request.args
        until = settings.get("until") or ()
        return cls(
            request=request,
            data=task_dict[task][split],
            limit=min(settings.get("max_new_tokens", longest), longest),
            until=(until,) if isinstance(until, str) else tuple(u for u in until if u),
        )

    @property
    def prompt(self) -> str:
        return self.request.args[0]

    @property
    def task(self) -> str:
        return self.request.args[4]

    @property
    def doc_id(self) -> int:
        return self.request.args[3]

    @cached_property
    def _doc(self) -> dict:
        return self.data[self.doc_id]

    @cached_property
    def pictures(self) -> list[Image]:
        """As training sees them, whatever decoded them: `datasets` has turned them already."""
        return [upright(picture) for picture in self.request.args[2](self._doc) or []]

    @cached_property
    def kind(self) -> str:
        """What is asked, where the set says so."""
        return self._doc.get("kind", "")

    @cached_property
    def target(self) -> str:
        """The right answer: a letter, a word, or the most frequent of several."""
        value = self._doc[BENCHMARKS[self.task].target]
        if isinstance(value, list):
            return Counter(value).most_common(1)[0][0]
        return chr(ord("A") + value) if isinstance(value, int) else str(value)

    @cached_property
    def image(self) -> str | None:
        """Names the picture, or all pictures together; None for a question without one."""
        if not self._digests:
            return None
        return hashlib.sha256("".join(self._digests).encode()).hexdigest()[:16]

    @cached_property
    def key(self) -> str:
        """Names prompt and pictures, whatever the set's order: equal keys are the same question."""
        return hashlib.sha256("".join((self.prompt, *self._digests)).encode()).hexdigest()[:16]

    @cached_property
    def _digests(self) -> list[str]:
        return [digest(picture) for picture in self.pictures]

    def forget(self) -> None:
        """Lets the pictures go, but not what names the item."""
        _ = self.key, self.image, self.target, self.kind
        for name in ("pictures", "_doc"):
            self.__dict__.pop(name, None)

    def cut(self, answer: str) -> str:
        """The answer up to the first stop string."""
        for stop in self.until:
            answer, found, _ = answer.partition(stop)
            self.at_limit = self.at_limit and not found
        return answer.strip()


def digest(picture: Image) -> str:
    """Names a picture by its pixels."""
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()


class LmmsModel(lmms):
    """A model for lmms-eval: asked for all items of all tasks at once, it answers them batch by batch."""

    is_simple = True

    def __init__(self, *, batch: int = 64, longest: int = 1024, progress: Progress | None = None) -> None:
        super().__init__()
        self.accelerator = None  # one process: lmms-eval needs none and would else make one
        self.batch = batch
        self.longest = longest
        self.progress = progress
        self.items: dict[tuple[str, int], Item] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @abstractmethod
    def answer(self, items: Sequence[Item]) -> list[str]:
        """Answers to the items of one batch; all of them allow the same number of new tokens."""

    def prepare(self, items: Sequence[Item]) -> None:
        """Called once with all items, before the first batch."""

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """What to sort by, so that a batch has little padding."""
        return [0] * len(items)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """lmms-eval's entry: one answer a request, in their order."""
        items = [Item.of(r, self.task_dict, self.longest) for r in requests]
        self.prepare(items)
        answers: list[str] = [""] * len(items)
        done = 0
        for chosen in self._batches(items):
            started = time.perf_counter()
            for index, text in zip(chosen, self.answer([items[i] for i in chosen]), strict=True):
                answers[index] = items[index].cut(text)
            self._record([items[i] for i in chosen], time.perf_counter() - started)
            done += len(chosen)
            if self.progress:
                self.progress(done, len(items))
        return answers

    def _batches(self, items: Sequence[Item]) -> list[list[int]]:
        lengths = self.lengths(items)
        order = sorted(range(len(items)), key=lambda i: (items[i].limit, lengths[i], i))
        batches = []
        for _, same in groupby(order, key=lambda i: items[i].limit):
            indices = list(same)
            batches += [indices[i : i + self.batch] for i in range(0, len(indices), self.batch)]
        return batches

    def _record(self, items: Sequence[Item], seconds: float) -> None:
        for item in items:
            self.items[item.task, item.doc_id] = item
            self.seconds[item.task] += seconds / len(items)
            item.forget()

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not asked for by any of the ten tasks."""
        raise NotImplementedError("the ten benchmarks generate answers")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not asked for by any of the ten tasks."""
        raise NotImplementedError("the ten benchmarks ask one round")
