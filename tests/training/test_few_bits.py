"""A stage that trains for weights of few bits: what it computes with, what learns, and what is left behind."""

import importlib.util
import math
from dataclasses import replace

import pytest
import torch

from switchkd_cli.engine.cost.step_memory import AUTOCAST, FP32, activations
from switchkd_cli.engine.models.low_bits import GROUP, linear_layers, quantise, rounded
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.objective import Objective
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.planning.preflight import check_named
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import Term
from tests.support import tiny, tiny_run
from tests.support.measured import bytes_left, computation, micro_batch, only
from tests.training.test_training import DISTILL, stage

pytest.importorskip("torchao", reason="torchao is not installed (pip install torchao)")
PARTS = frozenset({"vision", "projector", "language"})


@pytest.fixture
def paths() -> Paths:
    student = tiny.model(seed=1)
    return Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))


def logits(paths, batch):
    objective = Objective([Term.model_validate(term) for term in DISTILL])
    with torch.no_grad():
        return paths(batch, ("student", "switch"), objective.keep(batch))


@pytest.mark.parametrize("bits", [4, 8])
def test_it_computes_with_the_weights_that_an_evaluation_rounds_to(paths, tmp_path, bits):
    batch = tiny.batch(paths.student, tmp_path)
    whole = logits(paths, batch)
    with rounded(paths.student, bits):
        in_training = logits(paths, batch)
    again = logits(paths, batch)
    quantise(paths.student, bits, torch.float32)
    for_good = logits(paths, batch)
    for path, of in whole.items():
        assert torch.equal(of, again[path]) and not torch.equal(of, in_training[path])
        assert torch.equal(in_training[path], for_good[path])


def test_the_gradient_of_the_rounded_weights_is_that_of_the_weights_where_none_is_cut():
    """Against float64. Above 0 there is one number less than below, so a group's largest weight may be cut: it gets none."""
    student, for_good = tiny.model(seed=1), tiny.model(seed=1)
    quantise(for_good, 4, torch.float32)
    generator = torch.Generator().manual_seed(1)
    for layer, other in zip(linear_layers(student), linear_layers(for_good), strict=True):
        inputs = torch.randn(5, layer.in_features, generator=generator)
        with rounded(student, 4):
            layer(inputs).square().sum().backward()
        used, exact = other.weight.dequantize().double(), inputs.double()
        bias = 0 if layer.bias is None else layer.bias.double()
        expected = 2 * (exact @ used.T + bias).T @ exact
        groups = layer.weight.detach().unflatten(1, (-1, math.gcd(GROUP, layer.in_features)))
        may_be_cut = (groups == groups.abs().amax(-1, keepdim=True)).flatten(1)
        cut = may_be_cut & (layer.weight.grad == 0)
        error = (layer.weight.grad.double() - expected)[~cut].abs().max() / expected.abs().max()
        assert error < 2e-3 and cut.any()  # the scale has ten places


def test_steps_train_the_weights_themselves_and_leave_a_plain_model(paths, tmp_path):
    names = list(paths.state_dict())
    before = {name: p.detach().clone() for name, p in paths.student.named_parameters()}
    batch = tiny.batch(paths.student, tmp_path)
    trainer = Trainer(stage(bits=4), paths, 3, "fp32")
    assert not paths.one_tower
    for _ in range(2):
        figures, broken = trainer.step([batch], diagnosed=True)
        assert not broken and figures["switch_gap"] > 0
    trainer.close()
    after = dict(paths.student.named_parameters())
    changed = {name.split(".")[2] for name, p in before.items() if not torch.equal(p, after[name])}
    assert list(paths.state_dict()) == names and len(changed) == 3
    assert all("forward" not in vars(module) for module in paths.modules())


def test_a_layer_computes_with_the_weights_that_it_has_now(paths):
    """FSDP2 puts others in their place, and a copy of the student has its own."""
    with rounded(paths.student, 4):
        twin = paths.twin()
        own, copied = (next(of for of in linear_layers(each.student) if of.bias is None) for each in (paths, twin))
        inputs = torch.randn(3, own.in_features, generator=torch.Generator().manual_seed(1))
        before = own(inputs)
        copied.weight = torch.nn.Parameter(2 * copied.weight.detach())
        assert torch.equal(copied(inputs), 2 * before) and torch.equal(own(inputs), before)


def test_equal_towers_are_not_encoded_once_where_one_is_rounded(tmp_path):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2)
    student.model.model.vision_tower.load_state_dict(teacher.model.model.vision_tower.state_dict(), strict=False)
    paths = Paths(student, teacher, len(student.inputs.processor.tokenizer))
    Trainer(stage(bits=4, train=["projector", "language"]), paths, 3, "fp32").close()
    assert not paths.one_tower


@pytest.mark.parametrize("precision", [FP32, AUTOCAST], ids=["fp32", "autocast"])
def test_a_forward_pass_leaves_the_bytes_that_are_planned(paths, precision, tmp_path):
    batch = tiny.batch(paths.student, tmp_path)
    keep, wanted = batch.predicting("answer"), frozenset({"student", "switch"})
    for train in (PARTS, frozenset({"vision"}), frozenset({"projector"})):
        only(paths, train)
        needed = wanted if "vision" in train else {"student"}

        def forward(needed=needed):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision.cast), rounded(paths.student, 4):
                return paths(batch, needed, keep)

        computed = replace(computation(paths, needed, train), rounded=True)
        planned = activations(micro_batch(batch), computed, precision)
        left = bytes_left(forward, paths, paths.teacher)
        assert planned.saved + planned.cast == pytest.approx(left, rel=0.05), train


def test_without_torchao_the_machine_lacks_it(tmp_path, monkeypatch):
    run = load(tiny_run.write(tmp_path, distill={"bits": 4}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else name)
    with pytest.raises(
        UserError, match=r"torchao is not installed, and the recipe needs it \(stages.distill.bits: 4\)"
    ) as refused:
        check_named([run])
    assert refused.value.code == MACHINE
