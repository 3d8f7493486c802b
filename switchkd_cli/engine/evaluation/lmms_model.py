"""Base class of the models that lmms-eval evaluates: batches of items, each with a key to pair items of two runs."""

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
"""Called with (answered, all) after each batch."""


@dataclass
class Item:
    """One question of a stock task. Its images are read on first access."""

    request: Instance
    data: Sequence  # the task's split, by doc_id
    limit: int  # new tokens
    until: tuple[str, ...]
    at_limit: bool = False  # the answer was truncated at `limit`, before its end
    too_long: bool = False  # prompt and answer need more positions than the model has

    @classmethod
    def of(cls, request: Instance, task_dict: dict, longest: int) -> "Item":
        """Return a request's item, with as many new tokens as the stock task allows, but no more than `longest`."""
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
    def images(self) -> list[Image]:
        """The images, turned by their EXIF orientation as in training (`datasets` has already turned those that it decoded)."""
        return [upright(image) for image in self.request.args[2](self._doc) or []]

    @cached_property
    def kind(self) -> str:
        """The kind of question, where the data set has one."""
        return self._doc.get("kind", "")

    @cached_property
    def target(self) -> str:
        """The right answer: a letter, a word, or the most frequent of several."""
        value = self._doc[BENCHMARKS[self.task].target]
        if isinstance(value, list):
            return Counter(value).most_common(1)[0][0]
        return chr(ord("A") + value) if isinstance(value, int) else str(value)

    @cached_property
    def image_key(self) -> str | None:
        """A digest of the item's images; None for a question without images."""
        if not self._digests:
            return None
        return hashlib.sha256("".join(self._digests).encode()).hexdigest()[:16]

    @cached_property
    def key(self) -> str:
        """A digest of prompt and images, the same in any order of the data set: equal keys are the same question."""
        return hashlib.sha256("".join((self.prompt, *self._digests)).encode()).hexdigest()[:16]

    @cached_property
    def _digests(self) -> list[str]:
        return [digest(image) for image in self.images]

    def free_images(self) -> None:
        """Free the images, but compute keys, target and kind first."""
        _ = self.key, self.image_key, self.target, self.kind
        for name in ("images", "_doc"):
            self.__dict__.pop(name, None)

    def cut(self, answer: str) -> str:
        """Return the answer up to the first stop string."""
        for stop in self.until:
            answer, stop_found, _ = answer.partition(stop)
            self.at_limit = self.at_limit and not stop_found
        return answer.strip()


def digest(image: Image) -> str:
    """Return a digest of an image's pixels."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()


class LmmsModel(lmms):
    """A model for lmms-eval, which passes it all items of all tasks at once; it answers them batch by batch."""

    is_simple = True

    def __init__(self, *, batch: int = 64, longest: int = 1024, progress: Progress | None = None) -> None:
        super().__init__()
        self.accelerator = None  # lmms-eval needs none in one process, and would create one without this
        self.batch = batch
        self.longest = longest
        self.progress = progress
        self.items: dict[tuple[str, int], Item] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @abstractmethod
    def answer(self, items: Sequence[Item]) -> list[str]:
        """Return the answers to a batch of items, which all allow the same number of new tokens."""

    def prepare(self, items: Sequence[Item]) -> None:
        """Hook that is called once with all items, before the first batch."""

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return the lengths to sort the items by, so that a batch has little padding."""
        return [0] * len(items)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return one answer per request, in their order; lmms-eval calls this."""
        items = [Item.of(r, self.task_dict, self.longest) for r in requests]
        self.prepare(items)
        answers: list[str] = [""] * len(items)
        done = 0
        for batch in self._batches(items):
            started = time.perf_counter()
            for index, text in zip(batch, self.answer([items[i] for i in batch]), strict=True):
                answers[index] = items[index].cut(text)
            self._record([items[i] for i in batch], time.perf_counter() - started)
            done += len(batch)
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
            item.free_images()

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not used by any of the ten tasks."""
        raise NotImplementedError("the ten benchmarks generate answers")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not used by any of the ten tasks."""
        raise NotImplementedError("the ten benchmarks ask one round")
