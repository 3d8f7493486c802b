"""Run folders: the only file that knows their names.

runs/<recipe>/<row>/seed<k>/  one run: recipe.yaml run.json metrics.jsonl tensorboard/ model/ results.json
                              checkpoints/ while it is not finished (see checkpoints.py)
runs/stages/<key>/            a stage's output, shared by all runs whose recipes agree up to it
runs/evaluations/<key>/       scores that belong to no run: the teacher's, and those of `switchkd eval`
runs/playground/              images and questions that were drawn here, for the next run
runs/states/<key>.sqlite      a teacher's hidden states per example, where a stage caches them
runs/indexes/                 copies of large parquet files whose rows can be read one by one
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from switchkd_cli.errors import UNPRINTABLE, UserError
from switchkd_cli.files import atomic
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.run import NAMES, Run
from switchkd_cli.runs import provenance
from switchkd_cli.runs.file_schemas import Info, Results, Teacher, check

STAGES = "stages"
EVALUATIONS = "evaluations"
PLAYGROUND = "playground"
STATES = "states"
INDEXES = "indexes"  # the engine's data sources write there
OTHER_USES = (STAGES, EVALUATIONS, PLAYGROUND, STATES, INDEXES)


class _Path:
    """An attribute of RunFolder: the path of that name in the folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: "RunFolder", owner: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def root(self) -> Path:
        return self.path.parents[2]

    @property
    def place(self) -> str:
        """The path under the root, such as `components/switch-kd/seed1`."""
        return self.path.relative_to(self.root).as_posix()

    recipe = _Path("recipe.yaml")
    """The resolved recipe."""
    record = _Path("run.json")
    """Status, command, versions, seed, commit, times."""
    metrics = _Path("metrics.jsonl")
    tensorboard = _Path("tensorboard")
    trackers = _Path("trackers")
    """What trackers other than TensorBoard keep, in a folder each."""
    model = _Path("model")
    """The trained student, a Hugging Face folder."""
    results = _Path("results.json")
    answers = _Path("answers")
    """One JSON-lines file per benchmark."""
    skipped = _Path("skipped.jsonl")
    """One line for each example that could not be used; absent when there was none."""
    not_finite = _Path("not_finite.jsonl")
    """One line for each step with a non-finite loss or gradient, with its examples; absent when there was none."""
    checkpoints = _Path("checkpoints")
    """What an unfinished run resumes from; removed when it is finished."""
    best = _Path("best")
    """The student of the best checkpoint, a Hugging Face folder, where the recipe wants one."""
    deepspeed = _Path("deepspeed")
    """DeepSpeed's configuration, one JSON file per stage, where the recipe uses ZeRO."""
    text_log = _Path("log.txt")

    def lengths(self) -> dict[str, int]:
        """Bytes of each file that grows while the run trains; afterwards its content is on the disk."""
        lengths = {}
        for file in self._growing():
            atomic.sync(file)
            lengths[str(file.relative_to(self.path))] = file.stat().st_size
        return lengths

    def cut(self, lengths: Mapping[str, int]) -> None:
        """Shorten the growing files to these lengths, and remove those without one.

        A reader that follows a file finds another file in its place, not one that shrank.
        """
        for file in self._growing():
            name = str(file.relative_to(self.path))
            if name not in lengths:
                file.unlink()
            elif file.stat().st_size > lengths[name]:
                with file.open("rb") as stream:
                    atomic.write_bytes(file, stream.read(lengths[name]))

    def _growing(self) -> list[Path]:
        events = sorted(path for path in self.tensorboard.rglob("*") if path.is_file())
        return [file for file in (self.metrics, self.skipped, self.not_finite, *events) if file.exists()]

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to the metrics. Numbers that JSON can't express (NaN, infinity) become null."""
        atomic.append_json_lines(self.metrics, [{key: _plain(value) for key, value in entry.items()}])

    def entries(self) -> list[dict[str, Any]]:
        """The lines of the metrics (steps and events), without those that a kill cut off."""
        entries = atomic.json_lines(self.metrics, missing_ok=True, broken_ok=True)
        return [entry for entry in entries if isinstance(entry, dict)]

    def has_entry(self, **fields: Any) -> bool:
        """Whether a line of the metrics has these values."""
        return any(fields.items() <= entry.items() for entry in self.entries())

    def info(self, *needed: str) -> dict[str, Any]:
        """The content of run.json; empty when it can't be read. Raises UserError for wrong fields and absent ones."""
        content = atomic.read_json(self.record)
        info = {} if content is None else check(Info, content, self.record)
        if absent := [field for field in needed if field not in info]:
            raise UserError(f"{self.record}: says no {', '.join(absent)}")
        return info

    def run(self) -> Run:
        """The run that this folder was created for, read from its own files."""
        info, resolved = self.info(*NAMES), load(self.recipe)
        return Run(info["recipe"], info["row"], info["title"], resolved.config, info["paper"] or {})


@dataclass(frozen=True)
class SharedFolder:
    """A folder named by the key of everything that it depends on, written once, whole or not at all."""

    path: Path

    @property
    def done(self) -> bool:
        return self.path.is_dir()

    @contextmanager
    def build(self, tell: atomic.Tell = atomic.print_late) -> Iterator[Path | None]:
        """Give an empty folder to fill, which becomes `path` when the block ends well and has not moved it elsewhere.

        Gives None when `path` exists. While another process builds it, waits, and tells which process that is.
        """
        with atomic.hold(self.path, tell=tell):
            if self.done:
                yield None
                return
            with atomic.atomic_folder(self.path) as partial:
                yield partial


def set_aside(path: Path, word: str) -> Path:
    """Move a file or folder to `<word>-<its name>-<number>`. Returns its new path."""
    number = 1
    while (aside := path.with_name(f"{word}-{path.name.lstrip('.')}-{number}")).exists():
        number += 1
    shutil.move(path, aside)  # copies where the file system can't rename a folder
    return aside


def folder(root: Path, run: Run) -> RunFolder:
    """The folder of a run under `root`."""
    if run.recipe in OTHER_USES or run.recipe.startswith(".") or UNPRINTABLE.search(run.recipe):
        problem = f"{run.recipe}.yaml: a recipe can't have this name: its runs go to {root / run.recipe}"
        hint = f"rename the file: no dot in front, no control characters, not {', '.join(OTHER_USES)}"
        raise UserError(problem, hint=hint)
    return RunFolder(root.absolute() / run.recipe / run.row / f"seed{run.seed}")


def stage(root: Path, key: str) -> SharedFolder:
    """The shared output of a stage, by `Run.stage_key`."""
    return SharedFolder(root.absolute() / STAGES / key)


def set_shared_aside(root: Path, planned: Iterable[Run]) -> None:
    """Rename the runs' shared stages, and their teachers' scores by other versions of libraries, so that they are made again.

    Raises UserError while another process makes one of them.
    """
    stages = [stage(root, run.stage_key(i)) for run in planned for i in range(len(run.config.stages))]
    teachers = [evaluation(root, run.teacher_key) for run in planned if run.config.evaluation]
    for shared in dict.fromkeys([*stages, *filter(_made_otherwise, teachers)]):
        with atomic.hold(shared.path, wait=False):
            if shared.done:
                set_aside(shared.path, "old")


def _made_otherwise(teacher: SharedFolder) -> bool:
    """Whether other versions than today's gave a teacher's scores."""
    now, each = provenance.versions(), (scores(teacher) or {}).values()
    used = {pair for of in each for pair in of.get("versions", {}).items()}
    return any(now.get(name) != version for name, version in used)


def evaluation(root: Path, key: str) -> SharedFolder:
    """Shared scores; the teacher's have the key `Run.teacher_key`."""
    return SharedFolder(root.absolute() / EVALUATIONS / key)


def states(root: Path, key: str) -> Path:
    """The cache of a teacher's hidden states, by the key of what they are computed with."""
    return root.absolute() / STATES / f"{key}.sqlite"


def sets(root: Path) -> Path:
    """The folder of the playground's benchmark sets."""
    return root.absolute() / PLAYGROUND / "sets"


def scores(shared: SharedFolder) -> Any:
    """The results.json of shared scores, or None. Raises UserError for wrong fields."""
    file = shared.path / "results.json"
    if (content := atomic.read_json(file)) is None:
        return None
    kind = Results if isinstance(content, dict) and "scores" in content else Teacher
    return check(kind, content, file, hint=f"remove {shared.path}: the scores are computed again")


def teacher_run(runs: Sequence[Run]) -> Run | None:
    """A run with the teacher of all; None when they have several, as a table has one line for it."""
    with_teacher = {run.teacher_key: run for run in runs if run.config.teacher is not None}
    return [*with_teacher.values(), *runs][0] if len(with_teacher) < 2 and runs else None


def teacher_scores(root: Path, runs: Sequence[Run]) -> Any:
    """The known scores of the teacher of these runs and of the baselines; None also when they have several teachers."""
    run = teacher_run(runs)
    return None if run is None else scores(evaluation(root, run.teacher_key))


def finished(root: Path, recipe: str = "*") -> list[RunFolder]:
    """All finished runs, or those of one recipe, the oldest first. Raises UserError for wrong fields of a run.json."""
    pattern = recipe if recipe == "*" else escape(recipe)
    return [folder for folder, info in _runs(root, pattern, by="ended") if info.get("status") == "finished"]


def by_key(root: Path) -> dict[str, RunFolder]:
    """The folders of finished runs by key; of runs with the same key the oldest."""
    return {info["key"]: folder for folder in reversed(finished(root)) if (info := folder.info()).get("key")}


def newest(root: Path, *, interrupted: bool = False) -> RunFolder:
    """The run that finished last, or with `interrupted` the unfinished one that started last.

    Raises UserError when there is none.
    """
    by = "started" if interrupted else "ended"
    runs = [folder for folder, info in _runs(root, by=by) if (info.get("status") != "finished") == interrupted]
    if not runs:
        word = "interrupted" if interrupted else "finished"
        raise UserError(f"{root}: no {word} run", hint="switchkd distill recipes/quickstart.yaml")
    return runs[-1]


def _runs(root: Path, pattern: str = "*", *, by: str) -> list[tuple[RunFolder, dict[str, Any]]]:
    """All runs and their run.json, in the order of one of its times."""
    folders = [RunFolder(path.parent.absolute()) for path in root.glob(f"{pattern}/*/seed*/run.json")]
    return sorted(((f, f.info()) for f in folders), key=lambda run: (run[1].get(by, ""), str(run[0].path)))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | Mapping | list | tuple):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
