"""What a result was made with: versions, git commit, command. Environment variables are never written down."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from switchkd_cli import __version__
from switchkd_cli.distributed.launch_config import cores

COMMAND = "SWITCHKD_COMMAND"  # the environment variable that passes the command on to workers
LIBRARIES = (
    *("torch", "transformers", "tokenizers", "accelerate", "deepspeed"),
    *("lmms-eval", "datasets", "numpy", "pillow", "safetensors"),
)


def versions() -> dict[str, str]:
    """Versions of Python, this package and the installed libraries that results depend on."""
    known = {"python": platform.python_version(), "switchkd": __version__}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    return known


def machine() -> str:
    """Operating system, processor type and number of cores; what is known without loading a library."""
    return f"{platform.system()} {platform.machine()}, {cores()} cores"


def commit() -> str | None:
    """The git commit of this code, with `-dirty` after changes; None when the code is in no repository."""
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # fails inside somebody else's repository
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def command() -> list[str]:
    """The user's command line, the program by its name only; in a worker, that of the process that started it."""
    if COMMAND in os.environ:
        return json.loads(os.environ[COMMAND])
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def made_with() -> dict[str, Any]:
    """Command, versions and commit, as a run's record has them."""
    return {"command": command(), "versions": versions(), "commit": commit()}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=20)
    return done.stdout.decode(errors="replace").strip()
