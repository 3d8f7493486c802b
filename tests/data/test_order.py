"""The order of rows: decided by the seed, every row once an epoch; and how many processes prepare them."""

from collections import Counter

import numpy as np
import pytest
import torch

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.data_loader import count_workers, grouped_order, make_loader, order, visit_order
from switchkd_cli.engine.training.loop import train
from switchkd_cli.recipe.schema import Stage
from tests.support import tiny


def stage(**changes):
    settings = {"name": "tune", "data": "rows", "train": ["language"], "lr": 1e-3, "batch": 4, "steps": 3}
    return Stage.model_validate(settings | {"objective": [{"loss": "cross_entropy"}]} | changes)


def mixture(count, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(1, 10_000, count, np.int32), draw.random(count) < 0.7


def test_the_plain_order_stays_what_it_was():
    """Runs that were trained before can be repeated: torch's permutations of one generator, end to end."""
    generator = torch.Generator().manual_seed(3)
    expected = [i for _ in range(3) for i in torch.randperm(7, generator=generator).tolist()]
    assert order(7, 20, seed=3) == expected[:20]


@pytest.mark.parametrize(("count", "batch"), [(1000, 16), (64, 16), (17, 4), (5, 8), (1, 3), (4, 4)])
def test_every_row_is_visited_once_an_epoch(count, batch):
    sizes, image_mask = mixture(count)
    steps = -(-count // batch)  # an epoch, its last step filled from the next
    visited = grouped_order(sizes, image_mask, batch, steps * batch, seed=1)
    assert len(visited) == steps * batch
    assert set(visited) == set(range(count))
    counted = Counter(grouped_order(sizes, image_mask, batch, -(-5 * count // batch) * batch, seed=1))
    assert min(counted.values()) >= 5 and max(counted.values()) <= 5 + -(-batch // count)


def test_a_step_holds_one_kind_of_rows_the_longest_first():
    sizes, image_mask = mixture(1000)
    visited = grouped_order(sizes, image_mask, 16, 1008, seed=1)
    steps = [visited[i : i + 16] for i in range(0, 1008, 16)]
    mixed = [step for step in steps if len(set(image_mask[step])) > 1]
    assert len(mixed) <= 3  # what fills no step of its kind, and the first of the next epoch
    assert all(sizes[step].tolist() == sorted(sizes[step], reverse=True) for step in steps[:-1])
    kinds = [bool(image_mask[step[0]]) for step in steps]
    assert any(kinds[:10]) and kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)


def test_lengths_are_alike_within_micro_batches_only():
    """Which rows share a step is chance: else the gradient of a step would be that of short or of long rows."""
    sizes, image_mask = mixture(4000)
    visited = grouped_order(sizes, image_mask, 32, 3200, seed=1)
    steps = sizes[np.array(visited).reshape(-1, 32)]
    micro = sizes[np.array(visited).reshape(-1, 4)]
    assert np.ptp(micro, axis=1).mean() < 0.2 * np.ptp(steps, axis=1).mean()
    assert abs(steps.mean(1).std() - sizes.std() / np.sqrt(32)) < 0.2 * sizes.std() / np.sqrt(32)


def test_the_grouped_order_is_the_seeds_alone():
    sizes, image_mask = mixture(200)
    torch.manual_seed(0)
    first = grouped_order(sizes, image_mask, 8, 400, seed=1)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert grouped_order(sizes, image_mask, 8, 400, seed=1) == first
    assert grouped_order(sizes, image_mask, 8, 400, seed=2) != first
    torch.manual_seed(0)
    grouped_order(sizes, image_mask, 8, 400, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)  # and it draws from no one else's


def test_a_stage_says_which_order(tmp_path):
    data = tiny.conversations(tiny.model(), tmp_path)
    assert visit_order(stage(), data, 8, 1) == order(4, 8, 1)
    grouped = visit_order(stage(group_by="modality_length"), data, 8, 1)
    assert grouped == grouped_order(data.rows.survey.sizes, data.rows.survey.image_mask, 4, 8, 1)


# --- processes


def batches(student, folder, workers, turns="chained"):
    data = tiny.conversations(student, folder, turns)
    of = stage(workers=workers, micro_batch=2)
    return list(make_loader(of, student, data, order(len(data), 12, 5), 2))


@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_batches_are_the_same_however_many_processes_prepare_them(tmp_path, turns):
    student = tiny.model()
    alone = batches(student, tmp_path, 0, turns)
    for workers in (1, 3):
        for one, other in zip(alone, batches(student, tmp_path, workers, turns), strict=True):
            assert one.ids == other.ids
            for name in ("input_ids", "labels", "turn", "image", "image_rows", "attention", "position"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            for image, its_like in zip(one.images, other.images, strict=True):
                assert image.keys() == its_like.keys()
                assert all(torch.equal(image[name], its_like[name]) for name in image)


def test_training_is_the_same_with_processes_and_without(tmp_path):
    results = []
    for workers in (0, 2):
        student, lines = tiny.model(), []
        data = tiny.conversations(student, tmp_path)
        paths = Paths(student, None, len(student.inputs.processor.tokenizer))
        of = stage(workers=workers, micro_batch=2, group_by="modality_length", steps=6)
        train(of, paths, data, seed=0, precision="fp32", log=lines.append)
        results.append([line["loss"] for line in lines])
    assert results[0] == results[1]


def test_micro_batches_of_text_alone_are_trained_on(tmp_path):
    student, lines = tiny.model(), []
    rows = [tiny.row(f"t{i}", None, ("Say hi.", "hi there")) for i in range(3)] + tiny.rows(tmp_path)
    data = tiny.conversations(student, tmp_path, which=rows)
    paths = Paths(student, None, len(student.inputs.processor.tokenizer))
    of = stage(group_by="modality_length", train=["vision", "projector", "language"], micro_batch=2, steps=4)
    train(of, paths, data, seed=0, precision="fp32", log=lines.append)
    assert all(line["loss/cross_entropy"] > 0 and line["grad_norm"] > 0 for line in lines)


def test_small_data_stays_in_this_process(tmp_path, monkeypatch):
    data = tiny.conversations(tiny.model(), tmp_path)
    data.inspect()
    assert count_workers(stage(), data) == 0
    assert count_workers(stage(workers=3), data) == 3
    data._largest = 1 << 30  # as if its pictures were large
    monkeypatch.setattr("switchkd_cli.engine.training.data_loader.cores", lambda: 32)
    assert count_workers(stage(), data) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert count_workers(stage(), data) == 3
    monkeypatch.setattr("switchkd_cli.engine.training.data_loader.cores", lambda: 1)
    assert count_workers(stage(), data) == 1
