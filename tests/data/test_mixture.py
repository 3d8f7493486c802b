"""Mixtures: each data set has its share of every stretch of the training, in one order that the seed alone decides."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from switchkd_cli.engine.batch import Unusable
from switchkd_cli.engine.cost.data_sample import DataSample, RowLengths
from switchkd_cli.engine.cost.run_estimate import estimate_run
from switchkd_cli.engine.data.conversation import Mixture
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.data_loader import count_steps, grouped_order, mixed_order, order, visit_order
from switchkd_cli.engine.training.loop import Loop
from switchkd_cli.engine.training.validation import split
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import planned_machine
from switchkd_cli.recipe.load import load
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RunOptions
from tests.data.test_order import stage
from tests.support import small_recipe, tiny, tiny_run

MIXED = [{"use": "pictured", "weight": 3}, {"use": "texts", "weight": 1}]


def of_sets(visited, rows):
    return np.searchsorted(np.cumsum(rows), visited, side="right")


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 1, 1), (5, 0.01), (0.2, 0.5, 0.3)])
def test_every_stretch_has_the_sets_by_their_weights(weights):
    rows = (40, 1000, 7)[: len(weights)]
    share = [weight / sum(weights) for weight in weights]
    sets = of_sets(mixed_order(rows, share, 3000, seed=1), rows)
    for at in (1, 10, 64, 333, 3000):
        for number in range(len(rows)):
            assert abs((sets[:at] == number).sum() - share[number] * at) <= len(rows) - 1


def test_each_set_is_visited_in_an_order_of_its_own():
    rows = (5, 12)
    visited = np.array(mixed_order(rows, [0.75, 0.25], 400, seed=3))
    first, second = visited[visited < 5], visited[visited >= 5] - 5
    assert first.tolist() == order(5, 300, 3) and second.tolist() == order(12, 100, 3 + 2**32)
    counted = Counter(first.tolist())  # all of a set before any of it again
    assert max(counted.values()) - min(counted.values()) <= 1


def test_the_order_is_the_seed_s_alone_and_longer_trainings_begin_alike():
    made = mixed_order((50, 20), [0.4, 0.6], 300, seed=1)
    assert (
        mixed_order((50, 20), [0.4, 0.6], 900, seed=1)[:300] == made != mixed_order((50, 20), [0.4, 0.6], 300, seed=2)
    )
    assert mixed_order((50,), [1.0], 130, seed=1) == order(50, 130, 1)


@pytest.mark.parametrize("rows", [(3, 4), (1000, 1), (17, 23, 60)])
def test_by_their_sizes_an_epoch_visits_every_example_once(rows):
    total, share = sum(rows), [size / sum(rows) for size in rows]
    for epoch in np.array(mixed_order(rows, share, 5 * total, seed=0)).reshape(5, total):
        assert sorted(epoch) == list(range(total))


def test_grouped_steps_keep_the_shares():
    rows, share = (30, 100), [0.5, 0.5]
    sizes, image_mask = np.arange(130, dtype=np.int32), np.arange(130) < 30
    visited = grouped_order(sizes, image_mask, 8, 520, 1, mixed_order(rows, share, 5 * 130, 1))
    assert len(visited) == 520 and abs((of_sets(visited, rows) == 0).sum() - 260) <= 8
    mixed = [s for s in np.array(visited).reshape(-1, 8) if len(set(image_mask[s])) > 1]
    assert len(mixed) <= 8  # what fills no step of its kind, at most two an epoch


@pytest.fixture
def data(tmp_path):
    """Pictured rows and text rows, as two data sets."""
    model = tiny.model()
    pictured = [row for row in tiny.rows(tmp_path) if "image" in row]
    texts = [tiny.row(f"t{i}", None, ("Say hi.", "hi there")) for i in range(2)]
    return {
        "pictured": tiny.conversations(model, tmp_path, which=pictured),
        "texts": tiny.conversations(model, tmp_path, which=texts),
    }


def test_a_stage_trains_on_its_mixture(data):
    of = stage(data=MIXED)
    mixture, held_out = split(of, data)
    assert isinstance(mixture, Mixture) and held_out is None and mixture.shares == [0.75, 0.25]
    assert [mixture[i].id for i in range(len(mixture))] == ["a", "c", "d", "t0", "t1"]
    assert visit_order(of, mixture, 8, 1) == mixed_order([3, 2], [0.75, 0.25], 8, 1)
    assert count_steps(stage(data=MIXED, steps=None, epochs=2.0), len(mixture)) == 3  # 10 examples, 4 a step
    grouped = visit_order(stage(data=MIXED, group_by="modality_length"), mixture, 8, 1)
    assert Counter(i < 3 for i in grouped[:4]) in ({True: 4}, {False: 4}, {True: 3, False: 1})


def test_unusable_rows_are_those_of_their_set(data, tmp_path):
    mixture, _ = split(stage(data=[*reversed(MIXED)]), data)
    data["pictured"].bad_rows.allowed = 0.5
    (tmp_path / "c.png").unlink()
    (replaced,) = mixture[3].instead_of
    assert replaced.row == 3 and "c.png" in replaced.fault and mixture[3].id in ("a", "d")
    mixture.add_unusable([replaced])
    assert list(data["pictured"].bad_rows.unusable) == [1]
    with pytest.raises(UserError, match="pictured|rows"):
        mixture.add_unusable([replace(replaced, row=2), Unusable(4, "d", "no such image: d.png")])


class Left(Exception):
    pass


@pytest.mark.parametrize("group_by", [None, "modality_length"])
def test_a_mixture_resumes_bit_equal(data, group_by):
    of = stage(data=MIXED, group_by=group_by, steps=6, micro_batch=2)
    mixture, _ = split(of, data)

    def loop(lines):
        student = tiny.model()
        paths = Paths(student, None, len(student.inputs.processor.tokenizer))
        return Loop(of, paths, mixture, seed=0, precision="fp32", log=lines.append), paths

    whole, lines = loop(expected := [])[0], expected
    paths = whole.trainer.paths
    whole.run()
    again, state = [], {}
    first, _ = loop(again)

    def leave():
        if first.step == 3:
            state.update(tree_map(lambda v: v.clone() if torch.is_tensor(v) else v, first.state_dict()))
            raise Left

    first._save_or_stop = leave
    with pytest.raises(Left):
        first.run()
    second, others = loop(again)
    second.load_state_dict(state)
    second.run()
    assert [line["loss"] for line in again] == [line["loss"] for line in lines] and len(again) == 6
    assert all(torch.equal(p, q) for p, q in zip(paths.parameters(), others.parameters(), strict=True))


def test_a_run_of_a_mixture(tmp_path):
    rows = tiny_run.write(tmp_path, teacher=False).parent / "rows.json"
    parameters = {"file": str(rows), "images": str(tmp_path)}
    sets = {name: {"source": "llava_json", "parameters": parameters} for name in ("rows", "others")}
    mixed = [{"use": "others", "weight": 2}, {"use": "rows", "weight": 1}]
    recipe = tiny_run.write(tmp_path, teacher=False, data=sets, distill={"data": mixed, "steps": 2})
    run = load(recipe)
    plan = estimate_run(run, planned_machine(None, "fp32"), tmp_path / "elsewhere", {})
    assert (plan.stages[1].rows, plan.stages[1].data) == (8, "others, rows")
    folder = launch.run_one(run, RunOptions(out=tmp_path / "runs"))
    assert [
        line["step"] for line in tiny_run.trace(folder.path) if line.get("stage") == "distill" and "loss" in line
    ] == [1, 2]
    assert "others x2, rows x1" in (folder.model / "README.md").read_text()
    kept = folder.info()["lengths"]  # for the report's figure
    assert list(kept) == ["rows", "others"] and sum(kept["rows"].values()) == sum(kept["others"].values()) == 4
    other = load(recipe, overrides=["stages.distill.data=[{use: others, weight: 3}, {use: rows, weight: 1}]"])
    assert other.key != run.key and other.stage_key(0) == run.stage_key(0) and other.stage_key(1) != run.stage_key(1)


def test_a_plan_draws_its_sample_by_weight():
    long, short = (
        DataSample(rows, (RowLengths(n, 0, 0, 1, 1, 1),) * 3, False, "a sample") for rows, n in ((10, 90), (30, 10))
    )
    samples = {"pictured": long, "texts": short}
    sample = DataSample.of_stage(stage(data=MIXED), samples)
    assert sample.rows == 40 and 62 < sample.mean("length") < 78
    assert DataSample.of_stage(stage(data=MIXED), samples | {"texts": None}) is None
    assert DataSample.of_stage(stage(data="texts"), samples) is short
    assert DataSample.of_stage(stage(data="texts"), {"texts": None}) is None


@pytest.mark.parametrize(
    ("mixed", "problem"),
    [
        (
            "[{use: caption, weight: 1}, {use: questions, weight: 1}]",
            "data.0.use: unknown data set, got 'caption' (did you mean 'captions'?)",
        ),
        (
            "[{use: captions, weight: 1}, {use: captions, weight: 1}]",
            "data.1.use: data sets of a mixture need different names, got 'captions' twice",
        ),
        ("[{use: captions, weight: 1}, {use: questions}]", "data.1.weight: missing"),
        ("[{use: captions, weight: 0}]", "data.0.weight: must be greater than 0, got 0"),
        (
            "[{use: captions, weight: 1, wieght: 1}]",
            "data.0.wieght: unknown key, got 'wieght' (did you mean 'weight'?)",
        ),
        ("[{weight: 1}]", "data.0.use: missing"),
        ("[]", "data: must not be empty, got a list"),
        ("3", "data: must be a list, got 3"),
        (
            "[{use: captions, weight: 1}, {use: questions, weight: 1}], validation: {share: 0.5, every_steps: 1}",
            "validation.share: a mixture has none",
        ),
        (
            "[{use: captions, weight: 1}, {use: questions, weight: 1}], validation: {data: questions, every_steps: 1}",
            "validation.data: stage distill trains",
        ),
    ],
)
def test_a_wrong_mixture_is_a_problem_of_the_recipe(tmp_path, mixed, problem):
    recipe = small_recipe.write(
        tmp_path, ("    data: questions\n", "    data: {}\n".format(mixed.replace("], ", "]\n    ")))
    )
    with pytest.raises(UserError) as refused:
        load(recipe)
    (line,) = refused.value.problems
    assert f"stages.distill.{problem}" in line and line.split(":")[1].isdigit()


def test_a_mixture_has_one_template(tmp_path):
    recipe = small_recipe.write(
        tmp_path, ("    data: questions\n", "    data: [{use: captions, weight: 1}, {use: questions, weight: 1}]\n")
    )
    assert load(recipe).config.stages[1].trained_on == ("captions", "questions")
    recipe.write_text(
        recipe.read_text().replace("captions: {source: llava_json,", "captions: {source: llava_json, template: chatml,")
    )
    with pytest.raises(UserError, match="the data sets of a mixture have one template, got chatml, the model's own"):
        load(recipe)


def test_a_stage_before_may_not_train_on_what_a_share_leaves_out(tmp_path):
    recipe = small_recipe.write(
        tmp_path,
        ("data: captions, train", "data: [{use: captions, weight: 1}, {use: questions, weight: 1}], train"),
        ("    data: questions\n", "    data: questions\n    validation: {share: 0.5, every_steps: 1}\n"),
    )
    with pytest.raises(UserError, match="stage pretrain trains on these examples: it needs this share"):
        load(recipe)
