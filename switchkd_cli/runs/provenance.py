"""What a result was made with: versions, git commit, command. Never the environment's variables."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from switchkd_cli import __version__
from switchkd_cli.distributed.cpu_cores import cores

COMMAND = "SWITCHKD_COMMAND"  # the only variable that is read: it hands the command on to workers
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "deepspeed",
    "lmms-eval",
    "datasets",
    "numpy",
    "pillow",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that results depend on, as far as installed."""
    known = {"python": platform.python_version(), "switchkd": __version__}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    return known


def machine() -> str:
    """What seconds and memory depend on, as far as it can be told without loading a library."""
    return f"{platform.system()} {platform.machine()}, {cores()} cores"


def commit() -> str | None:
    """The git commit of this code, `-dirty` when changed since; None when it runs from no repository."""
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # an install inside someone's repository
        changed = _git(here.parent, "status", "--porcelain", "-uno")
        return _git(here.parent, "rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def command() -> list[str]:
    """The command line that the user gave, the program by its name only; in a worker, that of who started it."""
    if COMMAND in os.environ:
        return json.loads(os.environ[COMMAND])
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=20,
    )
    return done.stdout.decode(errors="replace").strip()
