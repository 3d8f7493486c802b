"""A frozen teacher in 8 or 4 bits, or offloaded: the switch's gradient goes through it, and what is kept where."""

import importlib.util

import pytest
import torch
from torch import nn

from switchkd_cli.engine.build import check_pair
from switchkd_cli.engine.models.layer_forwards import offload
from switchkd_cli.engine.models.low_bits import BYTES, PackedLinear, pack
from switchkd_cli.engine.paths import Paths
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.planning.preflight import check_named
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import RECOMPUTED
from tests.support import tiny, tiny_run
from tests.support.measured import bytes_left
from tests.support.small_recipe import write

needs_bits = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def computed(teacher, folder, *, cast=False, recomputed=()):
    """Return teacher and switch logits, and the switch's gradients by parameter of the student."""
    student = tiny.model(seed=1)
    paths = Paths(student, teacher, len(student.inputs.tokenizer))
    paths.recompute(recomputed)
    batch = tiny.batch(student, folder)
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        logits = paths(batch, ("teacher", "switch"), batch.predicting("answer"))
    logits["switch"].float().square().mean().backward()
    return logits, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def packed(bits):
    teacher = tiny.model(24, seed=2)
    pack(teacher.language.layers, bits)
    return teacher


def unpacked(teacher):
    """Return the teacher with ordinary layers of the rounded weights."""
    for name, layer in list(teacher.language.named_modules()):
        if isinstance(layer, PackedLinear):
            teacher.language.set_submodule(name, layer.plain())
    return teacher


@needs_bits
@pytest.mark.parametrize(
    ("bits", "recomputed", "cast"), [(4, (), False), (4, RECOMPUTED, True), (8, (), True), (8, RECOMPUTED, False)]
)
def test_the_switch_s_gradient_goes_through_packed_layers_as_through_the_rounded_weights(
    bits, recomputed, cast, tmp_path
):
    (logits, gradients), (expected, others) = (
        computed(of, tmp_path, cast=cast, recomputed=recomputed) for of in (packed(bits), unpacked(packed(bits)))
    )
    assert all(torch.equal(of, expected[path]) for path, of in logits.items())
    assert gradients.keys() == others.keys() and all(torch.equal(of, others[name]) for name, of in gradients.items())
    assert all("vision_tower" in name for name in gradients) and any(of.any() for of in gradients.values())
    whole = computed(tiny.model(24, seed=2), tmp_path, cast=cast)[0]
    assert not torch.equal(whole["teacher"], logits["teacher"])


@needs_bits
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_layers_take_the_bytes_of_their_bits_and_leave_no_weights_for_the_backward_pass(bits, tmp_path):
    teachers = tiny.model(64, seed=2), packed_of_64(bits)
    layers = [[m for m in t.language.layers.modules() if isinstance(m, nn.Linear)] for t in teachers]
    full = sum(m.weight.nbytes for m in layers[0])
    scales = [s.absmax.nbytes for m in layers[1] for s in (m.state, m.state.state2) if s is not None]
    small = sum(m.packed.nbytes for m in layers[1]) + sum(scales)
    assert small / full == pytest.approx(BYTES[bits] / 4, rel=0.005)
    student = tiny.model(seed=1)
    batch = tiny.batch(student, tmp_path)
    left = []
    for teacher in teachers:
        paths = Paths(student, teacher, len(student.inputs.tokenizer))
        forward = lambda paths=paths: paths(batch, ("switch",), batch.predicting("answer"))
        left.append(bytes_left(forward, paths, teacher))
    assert left[1] <= left[0]


def packed_of_64(bits):
    teacher = tiny.model(64, seed=2)
    pack(teacher.language.layers, bits)
    return teacher


@pytest.mark.parametrize("cast", [False, True], ids=["fp32", "bf16"])
def test_an_offloaded_teacher_changes_no_bit(cast, tmp_path):
    offloaded = tiny.model(24, seed=2)
    offload(offloaded)
    (logits, gradients), (expected, others) = (
        computed(of, tmp_path, cast=cast) for of in (offloaded, tiny.model(24, seed=2))
    )
    assert all(torch.equal(of, expected[path]) for path, of in logits.items())
    assert gradients.keys() == others.keys() and all(torch.equal(of, others[name]) for name, of in gradients.items())


def test_offloaded_weights_stay_where_they_are_and_are_copied_while_their_layer_runs():
    """ "meta" stands for the device that the rest of the teacher moves to."""
    teacher = tiny.model(24, seed=2).requires_grad_(False)
    offload(teacher)
    teacher.to("meta", torch.bfloat16)
    assert teacher.head.device.type == teacher.language.norm.weight.device.type == "meta"
    hidden = torch.zeros(2, 5, 24, device="meta", dtype=torch.bfloat16, requires_grad=True)
    positions = teacher.language.rotary_emb(hidden, torch.arange(5, device="meta")[None])
    for layer in teacher.language.layers:
        output = layer(hidden, position_embeddings=positions, attention_mask=None)
        output.sum().backward()
        assert output.device.type == hidden.grad.device.type == "meta"
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("cpu", torch.bfloat16)}


@needs_bits
def test_a_recipe_s_teacher_is_built_as_it_says_and_only_its_bits_are_part_of_keys(tmp_path):
    recipe = tiny_run.write(tmp_path)
    plain, four, moved = (
        load(recipe, None, words) for words in ((), ("teacher.bits=4",), ("teacher.weights=offloaded",))
    )
    assert plain.key == moved.key != four.key and plain.stage_key(1) == moved.stage_key(1) != four.stage_key(1)
    assert plain.stage_key(0) == four.stage_key(0)  # it has no teacher
    assert plain.teacher_digest == moved.teacher_digest != four.teacher_digest
    assert plain.teacher_key == moved.teacher_key == four.teacher_key  # it is scored in full
    kinds = [check_pair(run.config, with_teacher=True).build().teacher.language.layers[0] for run in (four, moved)]
    assert isinstance(kinds[0].mlp.up_proj, PackedLinear) and type(kinds[1]).__mro__[1].__name__ == "Offloaded"


def test_what_does_not_go_together_is_said(tmp_path, monkeypatch):
    def told(*changes):
        with pytest.raises(UserError) as error:
            load(write(tmp_path, *changes))
        return "\n".join(error.value.problems)

    teacher = "teacher: {family: llava, "
    assert "a teacher of 4 bits stays whole, got 'offloaded'" in told(
        (teacher, teacher + "bits: 4, weights: offloaded, ")
    )
    by_row = ("    lr_scale:", "    teacher_states: by_row\n    lr_scale:")
    assert "computes the batches of all processes together, got 'by_row'" in told(
        (teacher, teacher + "weights: sharded, "), by_row
    )
    both = ("    lr_scale:", "    lora: {bits: 4}\n    bits: 4\n    lr_scale:")
    assert "rounds weights that learn, with lora none of them do: got 4" in told(both)
    run = load(write(tmp_path, (teacher, teacher + "bits: 8, ")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(UserError, match=r"the recipe needs it \(teacher.bits\)") as error:
        check_named([run])
    assert error.value.code == MACHINE
