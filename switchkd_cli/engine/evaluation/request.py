"""A request for an evaluation: which benchmarks, of which world, how many items."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchkd_cli.benchmarks import BENCHMARKS, Benchmark
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.playground import benchmark_sets

WORLDS = ("playground", "hub")


@dataclass(frozen=True)
class EvaluationRequest:
    """Evaluate on `items` questions of each benchmark. Raises UserError for a request that is not possible.

    World "playground" draws them from scenes of `split` by `seed`; "hub" takes the first `items` of the published data
    sets, or all where `items` is None, and ignores `split` and `seed`.
    """

    world: str
    benchmarks: tuple[str, ...]
    split: str
    items: int | None
    seed: int

    def __post_init__(self) -> None:
        problems = [
            f"evaluation: unknown benchmark, got {name!r}{did_you_mean(name, BENCHMARKS)}"
            for name in self.benchmarks
            if name not in BENCHMARKS
        ]
        if self.world not in WORLDS:
            problems.append(f"evaluation: world must be one of {', '.join(WORLDS)}, got {self.world!r}")
        if self.world == "playground" and (self.items is None or self.items < 2):
            problems.append("evaluation: the playground has no end: say how many `items` a benchmark has, at least 2")
        if problems:
            raise UserError(problems)

    @property
    def rows(self) -> list[Benchmark]:
        return [BENCHMARKS[name] for name in dict.fromkeys(self.benchmarks)]

    @property
    def local(self) -> bool:
        """Whether the data sets are made on this machine."""
        return self.world == "playground"

    @property
    def longest(self) -> int:
        """The most new tokens of an answer. The playground's answers are a word or two; lmms-eval allows up to 1,024."""
        return 16 if self.local else 1024

    @property
    def limit(self) -> int | None:
        """Number of items to take from each published set, an even one: MME's questions come in pairs."""
        return None if self.local or self.items is None else self.items - self.items % 2

    def home(self, folder: Path) -> Path | None:
        """Return the folder of the local data sets, written under `folder` if they are missing; None for published ones."""
        if not self.local:
            return None
        fields = {name: getattr(self, name) for name in ("benchmarks", "split", "items", "seed")}
        return benchmark_sets.write_sets(
            folder / short_hash(fields | {"world": benchmark_sets.world_digest()}), **fields
        )


def short_hash(value: Any) -> str:
    """Return a hash of a JSON value, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
