"""The RECIPE argument of `pretrain` and `distill`: a recipe, or with --resume a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from switchkd_cli.commands.options import RunOptions
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.find import find
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder


def planned_runs(
    recipe: str | None, overrides: Sequence[str], options: RunOptions, load: Callable[[Path], Sequence[Run]]
) -> tuple[Sequence[Run], Path, Path]:
    """The runs that `load` reads from the recipe, or the run to resume; the folder of all runs; the recipe's file."""
    if options.resume and (folder := _interrupted(recipe, overrides, options.out)) is not None:
        return [folder.run()], folder.root, folder.recipe
    if recipe is None:
        raise UserError("which recipe?", hint="switchkd distill recipes/quickstart.yaml")
    file = find(recipe)
    return load(file), options.out, file


def _interrupted(name: str | None, overrides: Sequence[str], root: Path) -> RunFolder | None:
    """The run folder of that name, or of the newest unfinished run when there is no name.

    None for a recipe's name. Raises UserError when there is no unfinished run, and for overrides.
    """
    if name is None:
        folder = run_folder.newest_unfinished(root)
    elif not (folder := RunFolder(Path(name).absolute())).record.exists():
        return None
    if overrides:
        raise UserError(
            f"{overrides[0]}: overrides can't be combined with resuming a run",
            hint="leave KEY=VALUE out, or name the recipe instead of the run",
        )
    return folder
