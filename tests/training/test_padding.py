"""Padding: its share is logged, estimated by the plan, and smaller if examples are grouped by length."""

from pathlib import Path

import numpy as np
import pytest
import torch

from switchkd_cli.engine.batch import Example, collate
from switchkd_cli.engine.cost.data_sample import DataSample, RowLengths
from switchkd_cli.engine.cost.run_estimate import estimate_run
from switchkd_cli.engine.cost.workload import padded_share
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.data_loader import grouped_order, order
from switchkd_cli.engine.training.loop import train
from switchkd_cli.planning.estimate import planned_machine
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import Stage
from tests.support import tiny

TABLE = Path(__file__).parents[2] / "recipes" / "table1_0.5b.yaml"
GROUPED = {"group_by": "modality_length"}


def rows(folder):
    """Examples, a third with an image; answers of one to sixteen words."""
    pictures = [tiny.picture(folder, f"{i}.png", i) for i in range(8)]
    return [
        tiny.row(str(i), pictures[i // 3] if i % 3 == 0 else None, ("What?", "a " * (1 + 5 * i % 16)))
        for i in range(24)
    ]


def lines(folder, **changes):
    """Return the log of two epochs of training."""
    settings = {"name": "tune", "data": "rows", "train": ["projector"], "lr": 1e-3, "batch": 8, "steps": 6}
    settings |= {"micro_batch": 2, "objective": [{"loss": "cross_entropy"}]}
    student, logged = tiny.model(layers=1), []
    paths = Paths(student, None, len(student.inputs.processor.tokenizer))
    data = tiny.conversations(student, folder, which=rows(folder))
    how = {"seed": 0, "precision": "fp32", "log": logged.append}
    train(Stage.model_validate(settings | changes), paths, data, **how)
    return [line for line in logged if "step" in line], data


def share(sizes, micro):
    """Return the share of padding of examples in this order, each micro-batch padded to its longest example."""
    together = np.asarray(sizes).reshape(-1, micro)
    return 1 - together.sum() / (together.max(1).sum() * micro)


def test_each_step_logs_its_share_of_padding(tmp_path):
    logged, data = lines(tmp_path)
    visited = order(24, 48, 0)
    lengths = np.array([len(data[i].input_ids) for i in range(24)])[visited]
    for step, line in enumerate(logged):
        assert line["padding"] == pytest.approx(share(lengths[8 * step : 8 * step + 8], 2))


def test_grouping_lowers_it(tmp_path):
    def mean(**changes):
        return np.mean([line["padding"] for line in lines(tmp_path, **changes)[0]])

    assert mean(**GROUPED) < 0.5 * mean()


def test_a_plan_of_rows_that_are_not_here_counts_the_teachers_visual_tokens():
    sample = DataSample(2, (RowLengths(40, 1, 4, 5, 30, 39), RowLengths(50, 0, 0, 5, 49, 49)), False, "an assumption")
    seen = sample.seen_by(4, 9)
    assert [(row.length, row.teacher.length) for row in seen.lengths] == [(40, 45), (50, 50)]
    batch = seen.padded(seen.lengths[:1], "answer", [4, 9])
    assert (batch.length, batch.teacher.length, batch.teacher.positions) == (40, 45, 5)
    assert sample.seen_by(4, 4) is sample and seen.seen_by(4, 9) is seen


def test_a_batch_counts_its_tokens_and_its_places():
    lengths = (3, 7, 1)
    told = [torch.arange(n) + 20 for n in lengths]
    batch = collate([Example(str(len(t)), t, t, torch.zeros_like(t), t < 0) for t in told], pad_token=0)
    assert batch.sizes == (11, 21)


@pytest.mark.parametrize(("batch", "micro"), [(16, 4), (128, 2), (16, 16)])
def test_the_plan_estimates_what_training_pads(batch, micro):
    """Estimated from a sample of 200 examples; compared with training's orders of all of them."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(20, 900, 3000, np.int32)
    image_mask = draw.random(3000) < 0.8
    lengths[image_mask] += 728
    seen = [
        RowLengths(int(n), int(p), 728 * bool(p), 5, int(n) - 1, int(n) - 1)
        for n, p in zip(lengths, image_mask, strict=True)
    ]
    sample = DataSample(3000, tuple(seen[:200]), False, "made up")
    wanted = 3000 // batch * batch
    plain = share(lengths[order(3000, wanted, 1)], micro)
    by_length = share(lengths[grouped_order(lengths, image_mask, batch, wanted, 1)], micro)
    planned = [padded_share(sample.micro_batches(batch, micro, "all", [728], grouped=how)) for how in (False, True)]
    assert planned == pytest.approx([plain, by_length], abs=0.03)
    assert by_length < plain


def test_the_plan_is_of_the_order_that_the_recipe_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def plan(*changes):
        run = load(TABLE, overrides=changes)
        return estimate_run(run, planned_machine(None, "bf16"), tmp_path / "runs", {})

    plain, grouped = plan("stages.distill.group_by=null"), plan()
    assert plain.stages[1].padding > grouped.stages[1].padding
    assert plain.stages[1].flops > grouped.stages[1].flops
