"""A run from its recipe to its scores: build, train stage after stage, save, evaluate."""

from pathlib import Path

from transformers.utils import logging as transformers_logging

from switchkd_cli.engine import checkpoint
from switchkd_cli.engine.build import build_data, build_paths, load
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.trainer import train
from switchkd_cli.recipe.load import Run
from switchkd_cli.runs import RunFolder


def work(run: Run, folder: RunFolder, *, until: int | None = None) -> None:
    """Trains the run's stages (the first `until` of them) and saves the student to `folder.model`.

    A stage whose output already stands under the same key is loaded instead of trained.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    stages = run.config.stages[:until]
    done = max((i + 1 for i in range(len(stages)) if folder.stage(run.stage_key(i)).is_dir()), default=0)
    paths = build_paths(run.config, with_teacher=any(stage.needs_teacher for stage in stages))
    if done:
        resume_from(paths, folder.stage(run.stage_key(done - 1)))
        folder.log({"event": "reused", "stage": stages[done - 1].name})
    for i, stage in enumerate(stages[done:], start=done):
        data = build_data(run.config.data[stage.data], paths.student, folder.root)
        folder.log({"event": "stage", "stage": stage.name, "rows": len(data)})
        train(
            stage,
            paths,
            data,
            seed=run.seed + i,
            precision=run.config.precision,
            log=folder.log,
            trackers=folder.tensorboard,
        )
        if i + 1 < len(stages):
            checkpoint.save(paths.student, folder.stage(run.stage_key(i)))
    checkpoint.save(paths.student, folder.model)


def resume_from(paths: Paths, folder: Path) -> None:
    """Takes the student's weights from a finished stage."""
    paths.student.model.load_state_dict(load(str(folder)).model.state_dict())
