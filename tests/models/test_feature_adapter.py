"""The switch's adapter: what the teacher's projector gets from unlike towers, what it trains, and what stays as it was."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.step_memory import FP32, activations
from switchkd_cli.engine.data.rows import Fault
from switchkd_cli.engine.losses.divergences import forward_kl
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.paths import FeatureAdapter, Paths
from switchkd_cli.engine.teacher_states import TeacherStates
from switchkd_cli.engine.training.chunked import ChunkedObjective
from switchkd_cli.engine.training.diagnostics import Diagnostics
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.recipe.schema import Term
from tests.support import tiny
from tests.support.measured import bytes_left, computation, micro_batch, only

TALL = {"hidden_size": 32}  # another width
FINE = {"patch_size": 8}  # a grid of 3 x 3 instead of 2 x 2
COARSE = {"patch_size": 24}  # of 1 x 1
TURNS = ("chained", "independent")


def adapted(student, teacher, seed=0):
    both = (Blueprint(model.model.config, model.inputs, None) for model in (student, teacher))
    adapter = FeatureAdapter.between(*both, seed)
    return Paths(student, teacher, len(student.inputs.tokenizer), adapter=adapter).eval()


def resized(grid, side):
    """A square grid [rows, columns, D] at another side, bilinear between the centres of its places, in plain float64."""
    own = len(grid)
    places = [min(max((i + 0.5) * own / side - 0.5, 0.0), own - 1.0) for i in range(side)]
    out = torch.zeros(side, side, grid.shape[-1], dtype=torch.float64)
    for i, y in enumerate(places):
        for j, x in enumerate(places):
            for row in range(own):
                for column in range(own):
                    out[i, j] += max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * grid[row, column]
    return out


@settings(deadline=None)
@given(
    ours=st.integers(1, 5),
    theirs=st.integers(1, 5),
    levels=st.integers(1, 2),
    tiles=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_each_tile_of_each_image_is_mapped_level_by_level_and_resized(ours, theirs, levels, tiles, seed):
    adapter = FeatureAdapter(3, 4, levels, (ours, theirs), seed).double()
    torch.manual_seed(seed)
    for level in adapter.maps:
        torch.nn.init.normal_(level.bias)
    images = [torch.randn(count * ours**2, 3 * levels, dtype=torch.float64) for count in tiles]
    expected = []
    for image in images:
        parts = [part @ m.weight.T + m.bias for part, m in zip(image.split(3, -1), adapter.maps, strict=True)]
        grids = torch.cat(parts, -1).reshape(-1, ours, ours, 4 * levels)
        expected.append(torch.cat([resized(grid, theirs).flatten(0, 1) for grid in grids]).detach())
    for found, wanted in zip(adapter(tuple(images)), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    if len(set(tiles)) == 1:
        torch.testing.assert_close(adapter(torch.stack(images)), torch.stack(expected))


@pytest.mark.parametrize("widths", [(5, 5), (3, 7), (7, 3)])
def test_a_map_starts_as_an_isometry_which_between_equal_widths_is_the_identity(widths):
    ours, theirs = widths
    first, same, other = (FeatureAdapter(ours, theirs, 2, seed=seed).maps for seed in (1, 1, 2))
    product = first[0].weight.T @ first[0].weight if ours <= theirs else first[0].weight @ first[0].weight.T
    torch.testing.assert_close(product, torch.eye(min(widths)))
    assert not any(level.bias.any() for level in first)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first, same, strict=True))
    assert torch.equal(first[0].weight, other[0].weight) == (ours == theirs)
    assert ours != theirs or torch.equal(first[1].weight, torch.eye(5))


def test_no_image_stays_no_image():
    nothing = torch.zeros(0, 1, 3)
    assert FeatureAdapter(3, 4, 1, (2, 3))(nothing) is nothing


@pytest.mark.parametrize("turns", TURNS)
def test_between_equal_towers_the_switch_starts_bit_equal_to_one_without_adapter(tmp_path, turns):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2)
    batch = tiny.batch(student, tmp_path, turns)
    keep = batch.predicting("all")
    names = {"student", "teacher", "switch"}
    with torch.no_grad():
        plain = Paths(student, teacher, len(student.inputs.tokenizer))(batch, names, keep)
        logits = adapted(student, teacher)(batch, names, keep)
    assert all(torch.equal(logits[name], plain[name]) for name in names)


@pytest.mark.parametrize("vision", [TALL, FINE, COARSE, TALL | FINE], ids=str)
@pytest.mark.parametrize("turns", TURNS)
def test_unlike_towers_give_the_teachers_logits_where_the_adapter_gives_its_features(tmp_path, vision, turns):
    """The teacher's own logits are those of a batch that the teacher itself prepared; so are the switch's, of its features."""
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision=vision)
    ours, theirs = tiny.taught(student, teacher, tmp_path, turns), tiny.batch(teacher, tmp_path, turns)
    assert ours.image.sum() == 3 * 4 and theirs.image.sum() == 3 * teacher.inputs.usual.text.count("<image>")
    paths = adapted(student, teacher)
    with torch.no_grad():
        keep = ours.predicting_in_all("text")
        logits = paths(ours, {"student", "teacher", "switch"}, keep)
        expected = Paths(teacher, None, paths.vocabulary)(theirs, {"student"}, theirs.predicting("text"))["student"]
        features = teacher.encode(ours.images)
        paths.switch_adapter.forward = lambda *_: features
        exchanged = paths(ours, {"switch"}, keep)["switch"]
    assert logits["student"].shape == logits["teacher"].shape == logits["switch"].shape
    assert torch.equal(logits["teacher"], expected) and torch.equal(exchanged, expected)
    assert not torch.allclose(logits["switch"], expected, rtol=1e-3)
    paths.states = TeacherStates()  # example by example
    with torch.no_grad():
        by_row = paths(ours, {"teacher"}, keep)["teacher"]
    torch.testing.assert_close(by_row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("vision", [TALL, FINE, COARSE], ids=str)
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("on", ["answer", "text"])
def test_answers_are_compared_one_by_one_whatever_the_number_of_visual_tokens(tmp_path, monkeypatch, vision, turns, on):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision=vision)
    paths, batch = adapted(student, teacher), tiny.taught(student, teacher, tmp_path, turns)
    ours, theirs = (of.labels[of.labels >= 0] for of in batch.readings)
    assert (
        torch.equal(ours, theirs)
        and batch.input_ids.shape != batch.reading("teacher").input_ids.shape
        or vision == TALL
    )
    terms = [Term(name="ce", loss="cross_entropy"), Term(name="align", loss="forward_kl", to="teacher")]
    terms += [Term(name="vsd", loss="dbild", of="switch", to="teacher", on=on)]
    objective, figures, parts = Objective(terms), Diagnostics(terms), []
    logits = paths(batch, {"student", "teacher"}, batch.predicting_in_all("answer"))
    expected = forward_kl(logits["teacher"], logits["student"]).mean()
    for dense in (True, False):
        if not dense:
            monkeypatch.setattr("switchkd_cli.engine.lm_head.LOGITS", 5 * paths.vocabulary)
        way, keep = ChunkedObjective(objective, dense=dense), objective.keep(batch)
        inputs = LossInputs(paths(batch, way.outputs, keep), paths.heads(), batch, keep, objective.counts([batch]))
        parts.append(way(inputs, figures.add if dense else None)[1])
    torch.testing.assert_close(parts[0]["align"], expected.detach())
    torch.testing.assert_close(parts[1], parts[0])
    torch.testing.assert_close(figures.figures()["kl/student"], expected.item())


def test_max_length_cuts_the_same_text_from_both(tmp_path):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision=FINE)
    data = tiny.conversations(student, tmp_path)
    data.max_length = max(len(data.example(i).input_ids) for i in range(len(data))) - 2
    both = data.with_teacher(teacher.inputs)
    found = [both.example(i) for i in range(len(both))]
    assert any(example.cut for example in found)
    for example in found:
        (theirs,) = example.others.values()
        assert torch.equal(example.input_ids[~example.image], theirs.input_ids[~theirs.image])
        assert torch.equal(example.labels[~example.image], theirs.labels[~theirs.image])


def test_a_teacher_reads_the_students_text_whatever_its_own_template_and_end_token(tmp_path):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision=FINE)
    before = tiny.taught(student, teacher, tmp_path).reading("teacher")
    teacher.inputs.processor.chat_template = "other"
    teacher.inputs.tokenizer.eos_token = teacher.inputs.tokenizer.pad_token
    assert torch.equal(tiny.taught(student, teacher, tmp_path).reading("teacher").input_ids, before.input_ids)


def test_images_with_other_marks_are_no_pair(tmp_path):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision=FINE)
    teacher.inputs.usual = teacher.inputs.usual._replace(text="a" + teacher.inputs.usual.text)
    with pytest.raises(Fault, match="student and teacher read other texts"):
        tiny.conversations(student, tmp_path).with_teacher(teacher.inputs).text_example(0)


@pytest.mark.parametrize("vision", [{}, TALL, TALL | FINE], ids=str)
def test_the_switch_s_gradient_is_in_v_s_and_the_adapter_and_nowhere_else(tmp_path, vision):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision=vision)
    paths = adapted(student, teacher)
    batch = tiny.taught(student, teacher, tmp_path)
    student.requires_grad_(True)
    paths(batch, {"switch"}, batch.predicting_in_all("answer"))["switch"].square().sum().backward()
    reached = {name for name, p in paths.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(name.startswith(("student.model.model.vision_tower.", "switch_adapter.")) for name in reached)
    assert {name for name in reached if name.startswith("switch_adapter.")} == {
        "switch_adapter.maps.0.weight",
        "switch_adapter.maps.0.bias",
    }
    assert {p for name, p in paths.named_parameters() if name in reached} >= {
        *student.used_parameters("vision").values()
    }
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("train", [["adapter"], ["vision"], ["vision", "adapter"]], ids="-".join)
@pytest.mark.parametrize("vision", [{}, TALL | FINE], ids=str)
def test_the_plan_counts_the_operations_and_the_bytes_of_a_step_with_an_adapter(tmp_path, vision, train):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision=vision)
    paths = adapted(student, teacher).train()
    which = [tiny.row(n, tiny.picture(tmp_path, f"{n}.png", 1), ("What is it?", "a dog")) for n in "ab"]
    batch = tiny.taught(student, teacher, tmp_path, which=which)
    keep, wanted = batch.predicting_in_all("answer"), {"teacher", "switch"}
    only(paths, frozenset(train))
    ours, theirs = (ModelShape(model).vision.width for model in (student, teacher))
    computed = computation(paths, wanted, train, adapter=(ours, theirs, 1))
    left = bytes_left(lambda: paths(batch, wanted, keep), paths, teacher)
    planned = activations(micro_batch(batch), computed, FP32)
    assert planned.saved + planned.cast == pytest.approx(left, rel=0.05)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        paths(batch, wanted, keep)["switch"].square().sum().backward()
    assert flops.step(micro_batch(batch), computed) == counter.get_total_flops()
    assert computed.models.trained(frozenset(train)) == sum(p.numel() for p in paths.parameters() if p.requires_grad)
