"""`Run`: one row of a recipe with one seed, as data, and the keys under which its outputs are found again.

Keys hold digests of what a recipe names on this machine (checkpoints, data files, images): every byte of them counts.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from glob import escape
from os.path import exists, isdir, isfile, relpath
from pathlib import Path
from typing import Any, Self

from switchkd_cli import registry
from switchkd_cli.errors import UserError
from switchkd_cli.files.hashes import cache_home, content, digest_of, short_hash
from switchkd_cli.recipe import yaml_positions
from switchkd_cli.recipe.named_files import data_files, locate
from switchkd_cli.recipe.schema import DataSet, Evaluation, Model, Recipe
from switchkd_cli.recipe.validate import best_figure

DATASET = "dataset"  # the parameter of a source that names a folder of data, or a hub id
CARD = "README.md"  # describes a model, and is no part of it
FORMAT = 2  # part of every key: raise it when the same recipe no longer gives the same weights


def digest(*parts: Any) -> str:
    """Return a short hash of plain data."""
    return short_hash([FORMAT, *parts])


class Fingerprints:
    """The digests that one command needs, each computed once, when it is first asked for."""

    def __init__(self) -> None:
        self._digests: dict[str, str | None] = {}

    def named(self, name: str) -> str | None:
        """Return a digest of a file, of a checkpoint's folder without its card, or a hub id's commit in the hub's cache.

        None where nothing is on this machine. Raises UserError for a file that can't be read.
        """
        if name not in self._digests:
            self._digests[name] = fingerprint(name)
        return self._digests[name]

    def images(self, spec: DataSet) -> str | None:
        """Return a digest of the images that a data set's usable examples name, compared as `images_by` says.

        None where there is no folder of images, or where the examples can't be read: opening the data set reports why.
        """
        key = json.dumps([spec.source, spec.parameters, spec.images_by], sort_keys=True)
        if key not in self._digests:
            self._digests[key] = _images(spec)
        return self._digests[key]

    def data(self, field: str, spec: DataSet) -> dict[str, str | None]:
        """Return digests, by field, of the files that a data set's parameters name, and of its examples' images."""
        digests: dict[str, str | None] = {}
        for parameter, value in spec.parameters.items():
            of_folder = parameter == DATASET
            files = [file for file in data_files(f"{escape(value)}/**" if of_folder else value) if isfile(file)]
            contents = [self.named(file) for file in files]
            if files == [value]:
                digests[f"{field}.{parameter}"] = contents[0]
            elif files:  # names in a folder say which split a file is of
                inside = [relpath(file, value) for file in files] if of_folder else []
                digests[f"{field}.{parameter}"] = digest(inside, contents)
        return digests | {f"{field}.images": self.images(spec)}

    def evaluation(self, asked: Evaluation | None) -> dict[str, str | None]:
        """Return digests, by field, of what an evaluation reads apart from models: one's own rows, and tasks with their code."""
        digests: dict[str, str | None] = {}
        if asked is not None and asked.data is not None:
            digests |= self.data("evaluation.data", asked.data)
        if asked is not None and asked.tasks_path is not None:
            code = _of_folder(Path(asked.tasks_path), lambda file: "__pycache__" not in file.parts)
            digests["evaluation.tasks_path"] = code
        return digests

    def forget(self) -> None:
        """Drop all digests: the next call reads everything again."""
        self._digests.clear()


def fingerprint(name: str) -> str | None:
    """Return a digest of what a model's name stands for now: see `Fingerprints.named`."""
    if isfile(name):
        return content(Path(name))
    try:
        path = locate(name)
    except UserError:
        return None
    if not exists(path):
        return cached_commit(path)
    return _of_folder(Path(path), lambda file: file.name != CARD and not any(p[0] == "." for p in file.parts))


def cached_commit(hub_id: str) -> str | None:
    """Return the commit of the snapshot in the hub's cache."""
    from huggingface_hub import snapshot_download  # takes half a second to import

    try:
        return Path(snapshot_download(hub_id, local_files_only=True)).name
    except (OSError, ValueError):
        return None


def _of_folder(folder: Path, counts: Callable[[Path], bool]) -> str:
    """Return a digest of the files in a folder that count, told by their path in it."""
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return digest_of(folder, sorted(str(file) for file in files if counts(file)), needed=True)


def _images(spec: DataSet) -> str | None:
    parameters = {key: value for key, value in spec.parameters.items() if key != DATASET}
    folders = [value for value in parameters.values() if isinstance(value, str) and isdir(value)]
    if spec.images_by == "names" or not folders:
        return None
    try:
        rows = registry.resolve("source", spec.source)(cache_home(), **spec.parameters)
    except UserError:
        return None
    names = rows.survey.image_names
    if rows.images is None or not names:
        return None
    hint = "`images_by: size_and_time` in its data set compares sizes and times instead"
    return digest_of(rows.images, names, by_content=spec.images_by == "content", hint=hint)


# Fields that no result depends on, so they are no part of a key. Of `deepspeed` a key has `Recipe.arithmetic` instead.
NOT_IN_KEYS = {
    *("title", "rows", "controls", "world", "stand_ins"),
    *("checkpoints", "check", "trackers", "deepspeed", "launcher"),
}
NOT_IN_KEYS_OF_STAGES = {"activation_checkpointing"}
NOT_IN_KEYS_OF_TEACHER = {"weights"}
NAMED_PARTS = ("checkpoint", "vision", "language", "frozen_projector", "tokenizer", "image_processor")
NAMES = ("recipe", "row", "title", "paper")


@dataclass(frozen=True)
class Run:
    """One row of a recipe with one seed: everything a training process needs to know."""

    recipe: str
    row: str
    title: str
    config: Recipe
    paper: Mapping[str, float]
    fingerprints: Fingerprints = field(default_factory=Fingerprints, compare=False, repr=False)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def names(self) -> dict[str, Any]:
        """What its row is called, and the paper's scores of that row: a run that is reused for another has its own."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def name(self) -> str:
        """The name on the screen."""
        return f"{self.title} (seed {self.seed})"

    @cached_property
    def text(self) -> str:
        """The resolved recipe: the row and overrides applied, the rows left out. It is a recipe itself."""
        return yaml_positions.write(self.config.model_dump(mode="json", exclude={"rows", "controls"}))

    @cached_property
    def inputs(self) -> dict[str, str | None]:
        """A digest of each file or folder outside the recipe that results depend on, by the field that names it."""
        config = self.config
        models, data = self._models(config.models), self._data(config.data)
        return models | data | self.fingerprints.evaluation(config.evaluation)

    @cached_property
    def key(self) -> str:
        """A digest of all that the run's results depend on: a changed checkpoint changes it, a changed title doesn't."""
        config = self.config
        fields = config.model_dump(mode="json", exclude=NOT_IN_KEYS) | {"precision": config.arithmetic}
        fields["teacher"] = _dump(config.teacher, NOT_IN_KEYS_OF_TEACHER)
        fields["stages"] = [_dump(stage, NOT_IN_KEYS_OF_STAGES) for stage in config.stages]
        return digest(fields, self.inputs)

    @property
    def compared(self) -> str:
        """By what a run that is reused for this one was compared with it."""
        looser = {name: spec.images_by for name, spec in self.config.data.items() if spec.images_by != "content"}
        exceptions = [f"images of {name} by {how}" for name, how in looser.items()]
        return ", ".join(["same recipe, models and data, byte by byte", *exceptions])

    def changed(self) -> list[str]:
        """Return the fields whose inputs have changed since the keys were computed."""
        return changed_fields(self.inputs, replace(self, fingerprints=Fingerprints()).inputs)

    def with_seed(self, seed: int) -> Self:
        return replace(self, config=self.config.model_copy(update={"seed": seed}))

    def leading(self) -> Self:
        """Return the run of the leading stages, those that need no teacher; the run itself where that is all it does.

        Raises UserError where the first stage already needs the teacher.
        """
        count = next((i for i, stage in enumerate(self.config.stages) if stage.needs_teacher), None)
        if count == 0:
            problem = f"{self.recipe}: {self.row}: the first stage ({self.config.stages[0].name}) needs the teacher"
            raise UserError(problem, hint="run the whole recipe with switchkd distill")
        config = self.config.model_copy(update={"stages": self.config.stages[:count], "evaluation": None})
        if config == self.config:
            return self
        if any(best_figure(config)):  # of a later stage
            config = config.model_copy(update={"checkpoints": config.checkpoints.model_copy(update={"best": None})})
        return replace(self, row=f"{self.row}.pretrain", title=f"{self.title}, pre-trained", config=config, paper={})

    def stage_key(self, index: int) -> str:
        """Return a digest of all that the output of stage `index` depends on; rows that differ later share it."""
        config = self.config
        stages = config.stages[: index + 1]
        data = sorted({name for stage in stages for name in stage.data_sets})
        read = {name: path for stage in stages for name, path in stage.readings.items()}
        adapted = config.switch.adapter is not None and any(path.is_switch for path in read.values())
        used = set(read).union(*(stage.models for stage in stages), *(stage.means for stage in stages))
        own = {name: _dump(of) for name, of in {**config.paths, **config.teachers}.items() if name in used}
        models = {field: of for field, of in config.models.items() if field.rpartition(".")[2] in {"student", *used}}
        return digest(
            [_dump(config.student), _dump(models.get("teacher"), NOT_IN_KEYS_OF_TEACHER), self._models(models)],
            [{name: _dump(config.data[name]) for name in data}, self._data(data)],
            [_dump(stage, NOT_IN_KEYS_OF_STAGES) for stage in stages],
            [config.seed, config.arithmetic],
            *[_dump(config.switch)] * adapted,
            *[own] * bool(own),
        )

    @property
    def teacher_digest(self) -> str:
        """A digest of the teacher alone, and of its arithmetic."""
        config = self.config
        teacher = _dump(config.teacher, NOT_IN_KEYS_OF_TEACHER)
        return digest(teacher, self._models({"teacher": config.teacher}), config.arithmetic)

    @property
    def teacher_key(self) -> str:
        """A digest of all that the teacher's scores and the baselines depend on."""
        config = self.config
        asked = _dump(config.evaluation), *self.fingerprints.evaluation(config.evaluation).values()
        teacher = _dump(config.teacher, {"bits", *NOT_IN_KEYS_OF_TEACHER})  # it is scored in full
        return digest(teacher, self._models({"teacher": config.teacher}), *asked)

    def _models(self, models: Mapping[str, Model | None]) -> dict[str, str | None]:
        names = (pair for field, model in models.items() for pair in model_names(field, model))
        return {field: self.fingerprints.named(name) for field, name in names}

    def _data(self, names: Iterable[str]) -> dict[str, str | None]:
        """Return the digests of files that parameters of data sets name, and of the images of their examples."""
        digests: dict[str, str | None] = {}
        for name in names:
            digests |= self.fingerprints.data(f"data.{name}", self.config.data[name])
        return digests


def model_names(field: str, model: Model | None) -> Iterator[tuple[str, str]]:
    """Yield the dotted field and the name of each folder or hub id in a model's description."""
    for part in NAMED_PARTS:
        if isinstance(name := getattr(model, part, None), str):
            yield f"{field}.{part}", name


def changed_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the fields of inputs that are not the same."""
    return [field for field in {**before, **now} if before.get(field) != now.get(field)]


def _dump(model: Any, without: Collection[str] = ()) -> Any:
    return None if model is None else model.model_dump(mode="json", exclude=set(without))
