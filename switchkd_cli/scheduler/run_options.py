"""The options that `pretrain`, `distill` and `ablate` share; commands/options.toml has their help."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from switchkd_cli.distributed.launch_config import LaunchOptions

RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class RunOptions(LaunchOptions):
    """Where runs go, what happens to earlier ones, what is only checked, and in how many processes they train."""

    seed: int | None = None
    world: str | None = None
    out: Path = RUNS
    resume: bool = False
    overwrite: bool = False
    tracker: list[str] | None = None
    check: bool = False
    dry_run: bool = False
    machine: str | None = None

    def changes(self, overrides: Sequence[str] | None) -> list[str]:
        """The overrides of the recipe, those of --check and --tracker included."""
        trackers = [f"trackers={json.dumps(self.tracker)}"] * bool(self.tracker)
        return [*(overrides or ()), *["check=true"] * self.check, *trackers]
