"""A run from its recipe to its scores: build, train stage after stage, save, evaluate."""

import os
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from switchkd_cli import runs
from switchkd_cli.engine import card, checkpoint
from switchkd_cli.engine import evaluate as evaluation
from switchkd_cli.engine.build import build_data, check_pair, load
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.fidelity import fidelity
from switchkd_cli.engine.loop import train
from switchkd_cli.engine.paths import Paths
from switchkd_cli.locate import locate
from switchkd_cli.recipe.run import Run
from switchkd_cli.report.baselines import judged
from switchkd_cli.runs import RunFolder


def work(run: Run, folder: RunFolder) -> None:
    """Trains the run's stages and saves the student, with its card, to `folder.model`.

    A stage's output is shared under its key by all runs whose recipes agree up to it: whoever comes first trains
    it, the others load it.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    stages = run.config.stages
    pair = check_pair(run.config, with_teacher=any(stage.needs_teacher for stage in stages))
    paths = pair.build(run.config.seed)
    # every stage's rows are looked at before the first step is taken
    data = {
        name: build_data(run.config.data[name], paths.student, folder.root)
        for name in dict.fromkeys(stage.data for stage in stages)
    }
    for note in pair.notes:
        folder.log({"event": "models", "text": note})
    for rows in data.values():
        rows.ledger.list_in(folder.skipped)
    for i, stage in enumerate(stages):
        shared = runs.stage(folder.root, run.stage_key(i))
        with shared.build() as partial:
            if partial is None:
                folder.log({"event": "reused", "stage": stage.name, "from": shared.path.name})
                _take_weights(paths, shared.path)
            else:
                _train(run, i, paths, data[stage.data], folder)
                taught = data[stage.data]  # what is saved is asked as it was taught
                checkpoint.save(paths.student, partial, template=taught.chat_template, end=taught.end)
    shutil.copytree(shared.path, folder.model, copy_function=os.link)  # the same files, not a second copy
    card.write(run, folder)
    for name, rows in data.items():
        if rows.ledger.met:
            listed = {"of": len(rows), "listed": folder.skipped.name}
            folder.log({"event": "skipped", "data": name, "rows": len(rows.ledger.met), **listed})


def evaluate(run: Run, folder: RunFolder) -> dict[str, Any]:
    """Scores `folder.model` as the recipe says, writes `folder.results` and adds the scores to the card.

    Where the recipe has a teacher, "fidelity" says how close the student came to it, whatever it was trained by.
    """
    folder.log({"event": "evaluate", "benchmarks": len(run.config.evaluation.benchmarks)})
    results = evaluation.evaluate(str(folder.model), folder=folder.path, **_question(run, folder.root))
    if run.config.teacher is not None:
        results["fidelity"] = _fidelity(run, folder)
        folder.log({"event": "fidelity", **results["fidelity"]})
    runs.write_json(folder.results, results)
    card.write(run, folder)
    return results


def evaluate_teacher(run: Run, root: Path) -> dict[str, Any]:
    """Scores of the run's teacher, of the same teacher without pictures, and of the best constant answers.

    Computed once and shared by every run with this teacher and these questions. Their fields: `teacher`, `blind`
    (absent where the recipe has no teacher), `majority`; "not_beaten" names, by task, the baselines that the
    teacher does not clearly beat.
    """
    shared = runs.evaluation(root, run.teacher_key)
    with shared.build() as partial:
        if partial is not None:
            question = _question(run, root.absolute())
            batch = question.pop("batch")
            results = {"majority": evaluation.majority(folder=partial / "majority", **question)}
            for name, blind in (("teacher", False), ("blind", True)) if run.config.teacher else ():
                results[name] = evaluation.evaluate(
                    locate(run.config.teacher.checkpoint),
                    folder=partial / name,
                    batch=batch,
                    blind=blind,
                    allow_pickle=run.config.teacher.allow_pickle,
                    **question,
                )
            runs.write_json(partial / "results.json", judged(partial, results))
    return runs.scores(shared)


def _fidelity(run: Run, folder: RunFolder) -> dict[str, Any]:
    """The finished student beside its teacher, on rows of the data that its last stage was trained on."""
    pair = check_pair(run.config, with_teacher=True)
    paths = Paths(load(str(folder.model)), pair.teacher.build(), pair.vocabulary.shared)
    name = run.config.stages[-1].data
    rows = build_data(run.config.data[name], paths.student, folder.root)
    return {"data": name, **fidelity(paths, rows, precision=run.config.precision)}


def _question(run: Run, root: Path) -> dict[str, Any]:
    """The recipe's evaluation as arguments; its data sets are kept under the runs' root."""
    return {**run.config.evaluation.model_dump(), "sets": runs.sets(root)}


def _train(run: Run, index: int, paths: Paths, data: Conversations, folder: RunFolder) -> None:
    stage = run.config.stages[index]
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
