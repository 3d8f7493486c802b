"""Activation checkpointing: the same gradient bit by bit, from fewer kept bytes, in the frozen teacher in eval mode too."""

import pickle

import pytest
import torch

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.loop import train
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import RECOMPUTED, Stage
from tests.support import tiny
from tests.support.measured import bytes_left, clip_batch, clip_pair, only, pair
from tests.support.small_recipe import write
from tests.support.together import ALIGN, CE, VSD

EVERYTHING = frozenset({"vision", "projector", "language"})
ALL_PATHS = ("student", "teacher", "switch")
OF = {"vision": "student", "student": "student", "switch": "switch"}
"""What is recomputed -> a path that goes through it."""


def siglip(folder):
    paths = pair()
    return paths, tiny.batch(paths.student, folder, "chained")


def apart(folder):
    paths = pair()
    return paths, tiny.batch(paths.student, folder, "independent")


def clip(folder):
    return clip_pair(), clip_batch()


def dropping(paths):
    """The same pair, its student with dropout in every attention."""
    for module in paths.student.modules():
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.3)
    return paths


def gradients(paths, batch, wanted=ALL_PATHS, precision=torch.float32):
    """Losses and gradients of one backward pass, from one state of chance."""
    trained = only(paths, EVERYTHING)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        logits = paths(batch, wanted, batch.predicting("answer"))
    loss = sum(z.float().logsumexp(-1).square().sum() for z in logits.values())
    loss.backward()
    torch.rand(1)  # and chance goes on as it would have
    return [loss.detach(), torch.rand(1), *(p.grad for p in trained if p.grad is not None)]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "autocast"])
@pytest.mark.parametrize("made", [siglip, apart, clip])
def test_the_gradient_is_the_same_bit_by_bit(made, precision, tmp_path):
    paths, batch = made(tmp_path)
    paths = dropping(paths)
    expected = gradients(paths, batch, precision=precision)
    for what in (RECOMPUTED, *((name,) for name in RECOMPUTED)):
        paths.recompute(what)
        got = gradients(paths, batch, precision=precision)
        assert len(got) == len(expected) > 10
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True)), what


@pytest.mark.parametrize("what", RECOMPUTED)
def test_each_leaves_fewer_bytes_by_itself(what, tmp_path):
    """A layer leaves its input and no more: the teacher's in eval mode too, where transformers would keep all."""
    paths, batch = siglip(tmp_path)
    only(paths, EVERYTHING)
    keep = batch.predicting("answer")

    def left():
        return bytes_left(lambda: paths(batch, {OF[what]}, keep), paths, paths.teacher)

    whole = left()
    paths.recompute([what])
    assert not paths.teacher.training
    saved = whole - left()
    reader = {"vision": paths.student.model.model.vision_tower.encoder, "student": paths.student.model.model}
    layers = reader.get(what, paths.teacher.model.model)
    layers = getattr(layers, "language_model", layers).layers
    positions = len(batch.images) * 36 if what == "vision" else batch.input_ids.numel()
    width = next(layers[0].parameters()).shape[-1]
    inputs = (len(layers) - (what == "vision")) * positions * width * 4
    assert saved > 5 * inputs


def test_the_teacher_s_own_pass_computes_nothing_twice(tmp_path):
    paths, batch = siglip(tmp_path)
    only(paths, EVERYTHING)
    paths.recompute(RECOMPUTED)
    times = []
    for layer in paths.teacher.model.model.language_model.layers:
        layer.mlp.register_forward_hook(lambda *_: times.append(1))
    paths(batch, {"student", "teacher"}, batch.predicting("answer"))["student"].sum().backward()
    assert len(times) == 3  # its layers


def test_nothing_is_left_on_the_layers(tmp_path):
    paths, batch = siglip(tmp_path)
    paths.recompute(RECOMPUTED)
    gradients(paths, batch)
    assert not [name for name, module in paths.named_modules() if "forward" in vars(module)]
    assert not [module for module in paths.teacher.modules() if "forward" in vars(module)]


def stage(**changes):
    settings = {"name": "distill", "data": "rows", "train": list(EVERYTHING), "lr": 1e-3, "batch": 4}
    settings |= {"micro_batch": 2, "steps": 3, "objective": [CE, ALIGN, VSD]}
    return Stage.model_validate(settings | changes)


def test_a_training_has_the_same_lines_and_weights(tmp_path):
    """Diagnostics with their own backward passes included."""
    found = []
    for told in (False, True):
        student, lines = tiny.model(seed=1), []
        paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))
        how = {"seed": 0, "precision": "fp32", "log": lines.append}
        train(stage(activation_checkpointing=told), paths, tiny.conversations(student, tmp_path), **how)
        clock = {"seconds", "tokens_per_second", "data_wait", "memory_mib"}
        figures = [{key: value for key, value in line.items() if key not in clock} for line in lines]
        found.append((figures, list(student.parameters())))
    assert found[0][0] == found[1][0]
    assert any(key.startswith("grad/vsd") for line in found[0][0] for key in line)
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))


def test_the_next_stage_is_as_it_says_itself(tmp_path):
    student = tiny.model(seed=1)
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))
    how = {"seed": 0, "precision": "fp32", "log": lambda line: None}
    for told, student_s, teacher_s in (
        (True, {"vision", "language"}, {"language"}),
        (["switch"], set(), {"language"}),
        (False, set(), set()),
    ):
        train(stage(steps=1, activation_checkpointing=told), paths, tiny.conversations(student, tmp_path), **how)
        assert (paths.student.recomputed_parts, paths.teacher.recomputed_parts) == (student_s, teacher_s)
        assert paths.twin().student.recomputed_parts == student_s


# --- the recipe's field


@pytest.mark.parametrize(
    ("told", "meant"),
    [("true", RECOMPUTED), ("false", ()), ("[switch]", ("switch",)), ("[vision, student]", ("vision", "student"))],
)
def test_it_is_a_field_of_a_stage_and_makes_no_other_run(told, meant, tmp_path):
    file = write(tmp_path)
    run, plain = load(file, overrides=[f"stages.distill.activation_checkpointing={told}"]), load(file)
    assert run.config.stages[-1].activation_checkpointing == meant
    assert (run.key, run.stage_key(1)) == (plain.key, plain.stage_key(1))
    assert pickle.loads(pickle.dumps(run)).config == run.config


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("yess", "must be true, false or a list of vision, student, switch, got 'yess'"),
        ("2", "must be true, false or a list of vision, student, switch, got 2"),
        ("[swich]", "must be one of vision, student, switch, got 'swich' (did you mean 'switch'?)"),
    ],
)
def test_what_it_can_t_be_is_reported(told, expected, tmp_path):
    with pytest.raises(UserError) as caught:
        load(write(tmp_path), overrides=[f"stages.distill.activation_checkpointing={told}"])
    assert any(problem.endswith(expected) for problem in caught.value.problems), caught.value.problems
