"""Models that lmms-eval evaluates, in batches of items with a key to pair items of two runs; the majority baseline."""

import hashlib
import time
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL.Image import Image

from switchkd_cli.benchmarks import BENCHMARKS, EXPOSURE
from switchkd_cli.engine.data.image import upright
from switchkd_cli.errors import UserError
from switchkd_cli.playground.tasks.caption_bleu import caption_bleu
from switchkd_cli.recipe.schema import DataSet

LETTERS = frozenset("ABCDEFGH")
LONGEST = 1024
"""The most new tokens of an answer to a published benchmark, as in lmms-eval."""


@dataclass
class Item:
    """One question of a stock task; what its row of the data set holds is there once it was `read`."""

    task: str
    doc_id: int
    prompt: str
    data: Sequence  # the task's split, by doc_id
    read_images: Callable[[dict], list[Image] | None]
    limit: int  # new tokens
    until: tuple[str, ...]
    read_target: Callable[[dict], Any] | None = None  # of a stock task; else the benchmark's column holds the target
    images: list[Image] = field(default_factory=list)
    key: str = ""  # a digest of prompt and images, the same in any order of the data set: equal keys are one question
    image_key: str | None = None  # a digest of the images; None for a question without images
    kind: str = ""  # the kind of question, where the data set has one
    target: str = ""  # the right answer: a letter, a word, or the most frequent of several
    answer: str = ""
    at_limit: bool = False  # the answer was truncated at `limit`, before its end
    too_long: bool = False  # prompt and answer need more positions than the model has
    nats: float = 0.0  # the right answer's cross-entropy, which exposure needs

    @classmethod
    def of(cls, request: Instance, task_dict: dict, tasks: dict[str, Any], playground: bool = False) -> "Item":
        """Return a request's item, with as many new tokens as the task allows; in the playground no more than it needs."""
        prompt, settings, read_images, doc_id, task, split = request.args
        until = settings.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(filter(None, until))
        longest = BENCHMARKS[task].answer_tokens if playground else LONGEST
        limit = min(settings.get("max_new_tokens", longest), longest)
        read_target = tasks[task].doc_to_target if BENCHMARKS[task].stock else None
        return cls(task, doc_id, prompt, task_dict[task][split], read_images, limit, until, read_target)

    def shown(self, doc: dict) -> list[Image]:
        """Return the images of its row of the data set.

        They are turned by their EXIF orientation as in training (`datasets` has already turned those that it decoded).
        """
        shown = self.read_images(doc) or [] if callable(self.read_images) else []
        if other := {type(image).__name__ for image in shown if not isinstance(image, Image)}:
            raise UserError(f"{self.task}: shows something that is no image, so it can't be asked here: {other.pop()}")
        return [upright(image) for image in shown]

    def read(self) -> None:
        """Read the images, the right answer and the kind, once."""
        if self.key:
            return
        doc = self.data[self.doc_id]
        self.images = self.shown(doc)
        digests = [digest(image) for image in self.images]
        self.key = _joint_digest([self.prompt, *digests])
        self.image_key = _joint_digest(digests) if digests else None
        stock, read_target = BENCHMARKS[self.task].stock, self.read_target or itemgetter(BENCHMARKS[self.task].target)
        value = read_target(doc)
        self.kind = "" if stock else doc.get("kind", "")
        if isinstance(value, list) and value and all(isinstance(each, Hashable) for each in value):
            value = Counter(value).most_common(1)[0][0]
        self.target = chr(ord("A") + value) if isinstance(value, int) and not stock else str(value)

    def cut(self, answer: str) -> str:
        """Return the answer up to the first stop string."""
        for stop in self.until:
            answer, stop_found, _ = answer.partition(stop)
            self.at_limit = self.at_limit and not stop_found
        return answer.strip()


def digest(image: Image) -> str:
    """Return a digest of an image's pixels."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()


def _joint_digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


class LmmsModel(lmms):
    """A model for lmms-eval, which passes it all items of all tasks at once; it answers them batch by batch."""

    is_simple = True

    def __init__(self, *, batch: int = 64, playground: bool = False) -> None:
        super().__init__()
        self.accelerator = None  # lmms-eval needs none in one process, and would create one without this
        self.batch = batch
        self.playground = playground
        self.tasks: dict[str, Any] = {}  # lmms-eval's, by name
        self.items: dict[tuple[str, int], Item] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @abstractmethod
    def answer(self, items: Sequence[Item]) -> list[str]:
        """Return the answers to a batch of items, which all allow the same number of new tokens."""

    def nats(self, data: DataSet, count: int) -> list[float]:
        """Return the cross-entropy in nats of the answers of the first rows of a data set."""
        raise UserError(f"{EXPOSURE}: this engine gives no probabilities of answers", hint="--engine transformers")

    def prepare(self, items: Sequence[Item]) -> None:
        """Hook that is called once with all items, before the first batch."""

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return the lengths to sort the items by, so that a batch has little padding."""
        return [0] * len(items)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return one answer per request, in their order; lmms-eval calls this."""
        items = [Item.of(r, self.task_dict, self.tasks, self.playground) for r in requests]
        self.ask(items)
        return [item.answer for item in items]

    def ask(self, items: Sequence[Item]) -> None:
        """Answer items, and keep them."""
        self.items |= {(item.task, item.doc_id): item for item in items}
        self.prepare(items)
        for batch in self._batches(items):
            started = time.perf_counter()
            for item in batch:
                item.read()
            for item, text in zip(batch, self.answer(batch), strict=True):
                item.answer = item.cut(text)
            seconds = time.perf_counter() - started
            for item in batch:
                self.seconds[item.task] += seconds / len(batch)
                item.images = []  # no longer needed

    def _batches(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        by_length = sorted(zip(self.lengths(items), items, strict=True), key=lambda pair: (pair[1].limit, pair[0]))
        for _, same in groupby((item for _, item in by_length), key=lambda item: item.limit):
            while batch := list(islice(same, self.batch)):
                yield batch

    # abstract in lmms-eval, and not used: the benchmarks read one answer to one question
    loglikelihood = generate_until_multi_round = None


class Collected(Exception):
    """Ends an evaluation whose questions are known."""


class Questions(LmmsModel):
    """Keeps the items of an evaluation, of which none is answered: raises `Collected`."""

    def prepare(self, items: Sequence[Item]) -> None:
        raise Collected

    answer = None  # type: ignore[assignment]


class MajorityBaseline(LmmsModel):
    """Answers every item with the most frequent right answer of its task and kind, counted in the data set itself.

    That is an upper bound for constant answers, as it uses the right ones. All multiple-choice questions are one kind.
    Where the metric counts only one answer (POPE's F1: yes), the constant is that answer. Of captions, which are all
    different, it is one of the first `CANDIDATES`, that with the best score on all. No constant is right on both questions
    of a pair: there the answers are those of a coin, with each of its four outcomes in turn.
    """

    CANDIDATES = 30

    def nats(self, data: DataSet, count: int) -> list[float]:
        """Return the same for all: a constant says nothing of one answer more than of another."""
        return [0.0] * count

    def prepare(self, items: Sequence[Item]) -> None:
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for item in items:
            item.read()
            item.images = []
            counts[_group(item)][item.target] += 1
        self.constants = {group: self._constant(group[0], count) for group, count in counts.items()}

    def _constant(self, task: str, count: Counter[str]) -> str:
        if task == "captions":
            first = islice(count, self.CANDIDATES)
            return max(first, key=lambda said: sum(times * caption_bleu(said, [of]) for of, times in count.items()))
        return BENCHMARKS[task].counted or max(sorted(count), key=count.__getitem__)

    def answer(self, items: Sequence[Item]) -> list[str]:
        return [_of_a_coin(item) if BENCHMARKS[item.task].pairs else self.constants[_group(item)] for item in items]


def _of_a_coin(item: Item) -> str:
    """Return a letter that is right once in two questions, and twice in one of four pairs.

    Four pairs in a row have the four outcomes, each four in another order: the playground's causes take turns, too.
    """
    pair, place = divmod(item.doc_id, 2)
    right = pair + pair // 4 >> place & 1
    return item.target if right else "(b)" if item.target == "(a)" else "(a)"


def _group(item: Item) -> tuple[str, str]:
    if item.target in LETTERS:
        return item.task, "letter"
    return item.task, item.kind or ("yes/no" if item.target.lower() in ("yes", "no") else "open")
