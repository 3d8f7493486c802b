"""The switch's adapter: what the teacher's projector gets from unlike towers, what it trains, and what stays as it was."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from switchkd_cli.engine.batch import collate
from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.step_memory import FP32, activations
from switchkd_cli.engine.cost.workload import Computation, ModelPair, count_parameters
from switchkd_cli.engine.models.shape import shape
from switchkd_cli.engine.feature_adapter import FeatureAdapter
from switchkd_cli.engine.paths import Paths
from tests.support import tiny
from tests.support.measured import bytes_left, micro_batch, only

TALL = {"hidden_size": 32}  # another width
FINE = {"patch_size": 8}  # a grid of 3 x 3 instead of 2 x 2
COARSE = {"patch_size": 24}  # of 1 x 1
TURNS = ("chained", "independent")


def adapted(student, teacher, seed=0):
    adapter = FeatureAdapter.between(*(blueprint(model) for model in (student, teacher)), seed)
    return Paths(student, teacher, len(student.inputs.tokenizer), adapter).eval()


def blueprint(model):
    from switchkd_cli.engine.models.blueprint import Blueprint

    return Blueprint(model.model.config, model.inputs, None)


def grafted(teacher, student):
    """The teacher with the student's tower, which has its build."""
    both = copy.deepcopy(teacher)
    both.core.vision_tower.load_state_dict(student.core.vision_tower.state_dict())
    return both


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
    ours, theirs = (tiny.batch(model, tmp_path, turns) for model in (student, teacher))
    assert ours.image.sum() == 3 * 4 and theirs.image.sum() == 3 * teacher.inputs.usual.text.count("<image>")
    paths = adapted(student, teacher)
    with torch.no_grad():
        logits = paths(ours, {"student", "teacher", "switch"}, ours.predicting("text"))
        expected = Paths(teacher, None, paths.vocabulary)(theirs, {"student"}, theirs.predicting("text"))["student"]
        features = teacher.encode(ours.images)
        paths.switch_adapter.forward = lambda _: features
        exchanged = paths(ours, {"switch"}, ours.predicting("text"))["switch"]
    assert logits["student"].shape == logits["teacher"].shape == logits["switch"].shape
    assert torch.equal(logits["teacher"], expected) and torch.equal(exchanged, expected)
    assert not torch.allclose(logits["switch"], expected, rtol=1e-3)


@pytest.mark.parametrize("vision", [{}, TALL, TALL | FINE], ids=str)
def test_the_switch_s_gradient_is_in_v_s_and_the_adapter_and_nowhere_else(tmp_path, vision):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision=vision)
    paths = adapted(student, teacher)
    batch = tiny.batch(student, tmp_path)
    student.requires_grad_(True)
    paths(batch, {"switch"}, batch.predicting("answer"))["switch"].square().sum().backward()
    reached = {name for name, p in paths.named_parameters() if p.grad is not None and p.grad.any()}
    used = {
        f"student.model.model.{part}.{name}" for part in ("vision_tower",) for name in student.used_parameters("vision")
    }
    assert all(name.startswith(("student.model.model.vision_tower.", "switch_adapter.")) for name in reached)
    assert {name for name in reached if name.startswith("switch_adapter.")} == {
        "switch_adapter.maps.0.weight",
        "switch_adapter.maps.0.bias",
    }
    assert len([name for name in reached if "vision_tower" in name]) > len(used) // 2
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("train", [{"adapter"}, {"vision"}, {"vision", "adapter"}], ids=str)
@pytest.mark.parametrize("vision", [{}, TALL | FINE], ids=str)
def test_the_plan_counts_the_operations_and_the_bytes_of_a_step_with_an_adapter(tmp_path, vision, train):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision=vision)
    paths = adapted(student, teacher).train()
    which = [tiny.row(n, tiny.picture(tmp_path, f"{n}.png", 1), ("What is it?", "a dog")) for n in "ab"]
    batch = tiny.batch(student, tmp_path, which=which)
    keep, wanted = batch.predicting("answer"), {"teacher", "switch"}
    only(paths, frozenset(train))
    shapes = [shape(model.model.config) for model in (student, teacher)]
    (ours, theirs), levels = (of.vision.width for of in shapes), 1
    computed = Computation(frozenset(wanted), frozenset(train), adapter=ours * theirs * levels)
    left = bytes_left(lambda: paths(batch, wanted, keep), paths, teacher)
    planned = activations(*shapes, micro_batch(batch), computed, FP32)
    assert planned.saved + planned.cast == pytest.approx(left, rel=0.05)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        paths(batch, wanted, keep)["switch"].square().sum().backward()
    assert flops.step(*shapes, micro_batch(batch), computed) == counter.get_total_flops()
    pair = ModelPair(shapes[0], count_parameters(student), 1, shapes[1], 0, (ours, theirs, levels))
    assert pair.trained(frozenset(train)) == sum(p.numel() for p in paths.parameters() if p.requires_grad)
