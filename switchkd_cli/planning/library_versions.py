"""Whether the installed libraries are ones that this package works with, known before anything heavy starts."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

from switchkd_cli.benchmarks import LMMS_EVAL
from switchkd_cli.errors import MACHINE, UserError

PACKAGE = "switchkd-cli"
SCORING = "eval-full"  # the extra that declares lmms-eval
INSTALL_LMMS_EVAL = f"pip install --no-deps lmms-eval=={LMMS_EVAL}"


def check(*, scoring: bool = False) -> None:
    """Raises UserError, code MACHINE, naming every library whose version is outside the range declared for it.

    `scoring`: lmms-eval is looked at, too, and has to be there. What else is missing is found when it is imported.
    """
    if scoring and importlib.util.find_spec("lmms_eval") is None:
        raise UserError(
            "lmms-eval is not installed, and scores need it", hint=INSTALL_LMMS_EVAL, code=MACHINE
        )
    outside = _outside(SCORING if scoring else "")
    if outside:
        pip = " ".join(f"'{name}{declared}'" for name, _, declared in outside if name != "lmms-eval")
        commands = [f"pip install {pip}"] * bool(pip)
        commands += [INSTALL_LMMS_EVAL for name, _, _ in outside if name == "lmms-eval"]
        raise UserError(
            [f"{name} {found} is installed, switchkd needs {declared}" for name, found, declared in outside],
            hint=" && ".join(commands),
            code=MACHINE,
        )


@contextmanager
def import_errors() -> Iterator[None]:
    """Around an import of the engine, or of a part of it that needs further libraries.

    Raises UserError, code MACHINE, when a library is outside its range, missing or fails to import.
    """
    check()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _ours(error):
            raise
        if isinstance(error, ModuleNotFoundError):
            raise UserError(f"{error.name} is not installed", hint="make setup", code=MACHINE) from error
        raise UserError(
            f"a library can't be imported: {' '.join(str(error).split())} ({_place(error)})",
            hint="make setup, which installs the versions that were tested together",
            code=MACHINE,
        ) from error


@cache
def _outside(extra: str) -> tuple[tuple[str, str, str], ...]:
    """Name, installed version and declared range of each requirement that isn't met."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    try:
        declared = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    except metadata.PackageNotFoundError:  # run from its sources alone: nothing is declared
        return ()
    outside = []
    for one in declared:
        if one.marker is None or one.marker.evaluate({"extra": extra}):
            try:
                found = metadata.version(one.name)
            except metadata.PackageNotFoundError:
                continue
            # "2.6.0a0+nv25.01", in NVIDIA's containers, counts as 2.6.0
            if not one.specifier.contains(Version(found).base_version):
                outside.append((one.name, found, str(one.specifier)))
    return tuple(outside)


def _place(error: Exception) -> str:
    """File and line that an error comes from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


def _ours(error: Exception) -> bool:
    """Whether an import failed by a fault of this package."""
    if isinstance(error, ImportError) and error.name:
        return error.name.startswith("switchkd_cli")
    return Path(_place(error)).is_relative_to(Path(__file__).parents[1])
