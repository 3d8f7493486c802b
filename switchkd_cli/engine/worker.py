"""A run from its recipe to its model: build, train stage after stage, save."""

from pathlib import Path

from transformers.utils import logging as transformers_logging

from switchkd_cli import runs
from switchkd_cli.engine import checkpoint
from switchkd_cli.engine.build import build_data, build_paths, load
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.trainer import train
from switchkd_cli.recipe.run import Run
from switchkd_cli.runs import RunFolder


def work(run: Run, folder: RunFolder) -> None:
    """Trains the run's stages and saves the student to `folder.model`.

    A stage's output is shared under its key by all runs whose recipes agree up to it: whoever comes first trains
    it, the others load it.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    stages = run.config.stages
    paths = build_paths(run.config, with_teacher=any(stage.needs_teacher for stage in stages))
    for i in range(len(stages) - 1):
        shared = runs.stage(folder.root, run.stage_key(i))
        with shared.build() as partial:
            if partial is None:
                folder.log({"event": "reused", "stage": stages[i].name})
                _take_weights(paths, shared.path)
            else:
                _train(run, i, paths, folder)
                checkpoint.save(paths.student, partial)
    _train(run, len(stages) - 1, paths, folder)
    checkpoint.save(paths.student, folder.model)


def _train(run: Run, index: int, paths: Paths, folder: RunFolder) -> None:
    stage = run.config.stages[index]
    data = build_data(run.config.data[stage.data], paths.student, folder.root)
    folder.log({"event": "stage", "stage": stage.name, "rows": len(data)})
    train(
        stage,
        paths,
        data,
        seed=run.seed + index,
        precision=run.config.precision,
        log=folder.log,
        trackers=folder.tensorboard,
    )


def _take_weights(paths: Paths, folder: Path) -> None:
    paths.student.model.load_state_dict(load(str(folder)).model.state_dict())
