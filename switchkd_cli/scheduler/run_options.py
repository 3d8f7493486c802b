"""The options that `pretrain`, `distill` and `ablate` share; commands/options.toml has their help."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from switchkd_cli.distributed.launch_config import LaunchConfig, launch_config

RUNS = Path("runs")


@dataclass(frozen=True)
class RunOptions:
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
    gpus: int | None = None
    processes: int | None = None
    nodes: int | None = None
    node_rank: int | None = None
    rdzv_endpoint: str | None = None
    hostfile: Path | None = None

    def changes(self, overrides: Sequence[str] | None) -> list[str]:
        """The overrides of the recipe, those of --check and --tracker included."""
        trackers = [f"trackers={json.dumps(self.tracker)}"] * bool(self.tracker)
        return [*(overrides or ()), *["check=true"] * self.check, *trackers]

    def launch_config(self) -> LaunchConfig | None:
        """The processes to start; None when this process trains alone or was started by a launcher."""
        return launch_config(self.gpus, self.processes, self.nodes, self.node_rank, self.rdzv_endpoint, self.hostfile)
