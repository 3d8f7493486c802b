"""The plan's bytes compared with those of real steps: saved tensors, the profiler's peak, the optimiser's state."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from scripts.bench.allocated import peak_bytes_on_cpu
from switchkd_cli import registry
from switchkd_cli.engine.cost.loss_memory import bytes_per_logit
from switchkd_cli.engine.cost.step_memory import (
    AUTOCAST,
    BF16,
    FP32,
    activations,
    persistent_memory,
    precision_of,
    step_memory,
)
from switchkd_cli.engine.cost.workload import MicroBatch
from switchkd_cli.engine.losses.ops.state import State
from switchkd_cli.engine.models.llava_parts import LLAVA
from switchkd_cli.engine.models.low_bits import pack
from switchkd_cli.engine.models.low_rank import adapter_sizes, add_adapters
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.chunked import ChunkedObjective
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.planning.estimate import Machine
from switchkd_cli.recipe.schema import RECOMPUTED, Lora, TeacherModel, Term
from tests.support import tiny
from tests.support.measured import (
    bytes_kept,
    bytes_left,
    clip_batch,
    clip_pair,
    computation,
    micro_batch,
    models,
    only,
    pair,
    ways,
)

HAS_LIBRARIES = all(importlib.util.find_spec(name) for name in ("peft", "bitsandbytes"))
ACTIVATIONS = 0.05  # relative error stated in docs/plan.md
STEP = 0.10
COLUMNS = 8192  # large next to a knee, as a language model's vocabulary is


def shapes(paths):
    return ModelShape(paths.student), ModelShape(paths.teacher)


def test_parameters_are_those_of_the_built_models():
    for paths in (pair(), clip_pair()):
        for model in (paths.student, paths.teacher):
            size = ModelShape(LLAVA.skeleton(model.model.config))
            assert size.parameters == sum(p.numel() for p in model.parameters())
            for part in ("vision", "projector", "language"):
                assert size.trainable[part] == sum(p.numel() for p in model.used_parameters(part).values())


@pytest.mark.slow
@pytest.mark.parametrize("precision", [FP32, AUTOCAST, BF16], ids=["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("kind", ["chained", "independent", "long", "clip"])
def test_a_forward_pass_leaves_the_bytes_that_are_planned(kind, precision, tmp_path):
    paths = clip_pair() if kind == "clip" else pair()
    batch = clip_batch() if kind == "clip" else batch_of(paths, kind, tmp_path)
    if precision is BF16:
        paths = paths.to(torch.bfloat16)
    keep = batch.predicting("answer")

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision.cast):
            return paths(batch, wanted, keep)

    for wanted, train in ways():
        only(paths, train)
        planned = activations(micro_batch(batch), computation(paths, wanted, train), precision)
        left = bytes_left(forward, paths, paths.teacher)
        assert planned.saved + planned.cast == pytest.approx(left, rel=ACTIVATIONS), (wanted, train)


@pytest.mark.parametrize("precision", [FP32, AUTOCAST, BF16], ids=["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("kind", ["chained", "independent", "clip"])
def test_recomputed_layers_leave_the_bytes_that_are_planned(kind, precision, tmp_path):
    """Masks and rotary angles included, which no saved-tensor hook sees."""
    paths = clip_pair() if kind == "clip" else pair()
    batch = clip_batch() if kind == "clip" else batch_of(paths, kind, tmp_path)
    paths = paths.to(torch.bfloat16) if precision is BF16 else paths
    train, wanted = frozenset({"vision", "projector", "language"}), frozenset({"student", "switch"})
    only(paths, train)
    paths.recompute(RECOMPUTED)
    keep, computed = batch.predicting("answer"), computation(paths, wanted, train, *RECOMPUTED)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision.cast):
        left = bytes_kept(lambda: paths(batch, wanted, keep))
    work = activations(micro_batch(batch), computed, precision)
    planned = work.saved + work.cast
    student, teacher = shapes(paths)
    layers = student.vision.layers + student.language.layers + teacher.language.layers
    chance = layers * torch.get_rng_state().nbytes  # of each layer: nothing next to a real one's input
    assert planned + chance == pytest.approx(left, rel=ACTIVATIONS)


def batch_of(paths, kind, folder):
    if kind != "long":
        return tiny.batch(paths.student, folder, kind)
    exchanges = [("What is it? " * 100, "a dog " * 100)]
    rows = [tiny.row("a", tiny.picture(folder, "a.png", 1), *exchanges), tiny.row("b", None, *exchanges)]
    return tiny.batch(paths.student, folder, "chained", rows)


@pytest.mark.skipif(not HAS_LIBRARIES, reason="peft or bitsandbytes is not installed")
@pytest.mark.parametrize("precision", [FP32, AUTOCAST], ids=["fp32", "autocast"])
@pytest.mark.parametrize("bits", [None, 4])
def test_adapters_of_low_rank_and_packed_layers_leave_the_bytes_that_are_planned(bits, precision, tmp_path):
    paths, train = pair(), frozenset({"vision", "projector", "language"})
    spec = Lora(rank=2, bits=bits)
    count, kept = adapter_sizes(LLAVA.skeleton(paths.student.model.config), spec)
    teacher = TeacherModel(checkpoint="x", bits=8 if bits else None)
    computed = computation(paths, {"student", "switch"}, train, low_rank=(count, kept), bits=bits, kept=teacher)
    add_adapters(paths.student, spec, seed=0)
    assert sum(p.numel() for p in paths.used_parameters("language")) == count
    batch = tiny.batch(paths.student, tmp_path)
    keep, wanted = batch.predicting("answer"), frozenset({"student", "switch"})
    only(paths, train)
    if bits:
        pack(paths.teacher.language.layers, bits)

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision.cast):
            return paths(batch, wanted, keep)

    planned = activations(micro_batch(batch), computed, precision)
    left = bytes_left(forward, paths, paths.teacher)
    assert planned.saved + planned.cast == pytest.approx(left, rel=ACTIVATIONS)


@pytest.mark.parametrize("gpus", [1, 4])
def test_what_a_teacher_s_weights_and_a_student_s_adapters_take_is_planned(gpus):
    """A teacher of 7 layers, of which 6 are not on the GPU, or a part of 5; a student whose layers have 4 bits."""
    paths = Paths(tiny.model(seed=1), tiny.model(24, layers=7, seed=2), 100)
    machine, batch = Machine(gpus=gpus, zero=0), MicroBatch(1, 1, 8, 2)

    def held(who, **more):
        computed = computation(paths, {"student"}, {"language"}, **more)
        return step_memory(batch, computed, FP32, machine, 8.0)[f"{who} weights"]

    linear = [m for m in paths.teacher.language.layers.modules() if isinstance(m, nn.Linear)]
    matrices, whole = sum(m.weight.numel() for m in linear), sum(p.nbytes for p in paths.teacher.parameters())
    expected = {
        "whole": whole,
        "offloaded": whole - 4 * matrices * 6 / 7,
        "sharded": whole - 4 * matrices * 5 / 7 * (1 - 1 / gpus),
    }
    for weights, size in expected.items():
        assert held("teacher", kept=TeacherModel(checkpoint="x", weights=weights)) == pytest.approx(size)
    packed = TeacherModel(checkpoint="x", bits=8)
    assert held("teacher", kept=packed) == pytest.approx(whole - matrices * (4 - 1 - 4 / 64))
    count, kept = adapter_sizes(paths.student, Lora(rank=2))
    ours = sum(m.weight.numel() for m in paths.student.language.layers.modules() if isinstance(m, nn.Linear))
    adapted: dict = {"low_rank": (count, kept), "bits": 4}
    assert replace(models(paths), **adapted).trained(frozenset({"language"})) == count
    spared = ours * (4 - 1 / 2 - (1 + 4 / 256) / 64)
    assert held("student", **adapted) == pytest.approx(held("student") + 4 * count - spared)


OBJECTIVES = {
    "sft": ["cross_entropy"],
    "align": ["cross_entropy", "dbild:student"],
    "switch-kd": ["cross_entropy", "dbild:student", "dbild:switch"],
    "forward-kl": ["cross_entropy", "forward_kl:student", "forward_kl:switch"],
}


def objective_of(names):
    terms = []
    for number, name in enumerate(names):
        loss, _, of = name.partition(":")
        sides = {"of": of, "to": "teacher"} if of else {}
        terms.append(Term(name=f"t{number}", loss=loss, **sides))
    return Objective(terms)


@pytest.mark.parametrize("cast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("names", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_step_peaks_where_it_is_planned_to(names, cast, tmp_path):
    planned, peak = peaks(names, cast, frozenset(), tmp_path)
    assert planned == pytest.approx(peak, rel=STEP)


@pytest.mark.parametrize("cast", [False, True], ids=["fp32", "bf16"])
def test_a_recomputed_step_peaks_lower_and_where_it_is_planned_to(cast, tmp_path):
    names = OBJECTIVES["switch-kd"]
    planned, peak = peaks(names, cast, frozenset(RECOMPUTED), tmp_path)
    _, whole = peaks(names, cast, frozenset(), tmp_path)
    assert peak < whole
    assert planned == pytest.approx(peak, rel=STEP)


def peaks(names, cast, recomputed, tmp_path):
    """Return the bytes of a step beyond those that stay: planned, and measured."""
    paths, objective = pair(64, columns=COLUMNS), objective_of(names)
    paths.recompute(recomputed)
    batch = tiny.batch(paths.student, tmp_path, "chained", tiny.rows(tmp_path) * 3)
    keep, counts, chunks = (objective.keep(batch), objective.counts([batch]), ChunkedObjective(objective))
    train = frozenset({"vision", "projector", "language"})
    only(paths, train)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            outputs = paths(batch, chunks.outputs, keep)
        heads = paths.heads(torch.bfloat16 if cast else None)
        chunks(LossInputs(outputs, heads, batch, keep, counts))[0].backward()

    step()  # afterwards the gradients are there
    precision = precision_of("bf16" if cast else "fp32", 0)
    planned = step_memory(
        micro_batch(batch),
        computation(paths, objective.outputs, train, *recomputed),
        precision,
        Machine(gpus=1, zero=0),
        bytes_per_logit(objective.terms, precision.compute, COLUMNS),
    )
    moving = ("bf16 copies", "activations", "logits", "recomputed layer")
    return sum(planned[name] for name in moving), peak_bytes_on_cpu(step)


def test_what_stays_from_step_to_step_is_as_planned():
    paths, train = pair(), frozenset({"projector", "language"})
    trained = only(paths, train)
    optimiser = AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    student, teacher = shapes(paths)
    sizes = student.parameters, student.trained(train), teacher.parameters
    planned = persistent_memory(*sizes, FP32, Machine(gpus=1, zero=0))
    moments = [t for state in optimiser.state.values() for t in state.values() if t.ndim]
    assert planned["student weights"] == sum(p.nbytes for p in paths.student.parameters())
    assert planned["teacher weights"] == sum(p.nbytes for p in paths.teacher.parameters())
    assert planned["gradients"] == sum(p.grad.nbytes for p in trained)
    assert planned["optimiser"] == sum(t.nbytes for t in moments)


def test_each_zero_stage_shards_one_thing_more():
    shared = {zero: persistent_memory(100, 80, 300, BF16, Machine(gpus=8, zero=zero)) for zero in (1, 2, 3)}
    assert shared[1] == {
        "student weights": 200,
        "teacher weights": 600,
        "gradients": 160,
        "optimiser": 12 * 80 / 8,  # float32 weights and two moments
    }
    assert shared[2] == shared[1] | {"gradients": 320 / 8}  # which are added up in float32
    assert shared[3] == shared[2] | {"student weights": 200 / 8}


@pytest.mark.parametrize(
    "loss", [n for n in registry.LOSSES if "student_logits" in registry.signature("loss", n).positional]
)
def test_what_a_loss_takes_is_measured_on_a_small_example(loss):
    """Against the profiler's peak, of bfloat16 logits over a vocabulary that is large next to the knee."""
    rows, vocabulary = 16, 40_000
    torch.manual_seed(0)
    student, teacher, blind = (3 * torch.randn(rows, vocabulary).bfloat16() for _ in range(3))
    student.requires_grad_(True)
    compare, reads = registry.resolve("loss", loss), registry.signature("loss", loss).positional
    # what is matched within an example takes most of one example, as the plan's is
    of = torch.arange(rows) // (rows if "teacher_rows" in reads else 8)
    targets = torch.randint(0, vocabulary, (rows,))
    spans = dict.fromkeys(("teacher_spans", "student_spans"), torch.arange(rows))
    by_spans = {"teacher_targets": targets, "first_pieces": torch.arange(vocabulary), **spans}

    def work():
        given = {"teacher_logits": teacher.detach(), "student_logits": student}
        given |= {
            "targets": targets,
            "rows": of,
            "progress": 0.5,
            "state": State(),
            "blind_logits": blind,
            "reference_logits": blind,
        } | by_spans
        given |= {"teacher_rows": of, "signs": (-1) ** (torch.arange(rows) // 4)}
        compare(*(given[name] for name in reads)).sum().backward()

    paths = sum(name.endswith("_logits") for name in reads)
    alignment = "bytes" if registry.signature("loss", loss).of_spans else "positions"
    on = "pair" if registry.signature("loss", loss).of_preferences else "answer"
    term = Term(name="t", loss=loss, to="labels" if paths == 1 else "teacher", alignment=alignment, on=on)
    peak = peak_bytes_on_cpu(work) / (rows * vocabulary) + 2 * paths  # the logits themselves
    # ids are sorted in a copy that no operation of torch shows: a byte or two a logit
    assert bytes_per_logit([term], 2, vocabulary) == pytest.approx(peak, rel=0.1, abs=1.0)


def test_a_loss_that_nobody_has_measured_needs_its_file_and_a_line_only(tmp_path, monkeypatch):
    (tmp_path / "new_loss.py").write_text(
        "def squares(teacher_logits, student_logits):\n"
        "    return (teacher_logits.float() - student_logits.float()).square().sum(-1)\n\n\n"
        "def broken(teacher_logits, student_logits):\n"
        "    raise KeyError('of a batch as no small example is')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.LOSSES, "squares", "new_loss:squares")
    monkeypatch.setitem(registry.LOSSES, "broken", "new_loss:broken")
    squares, broken = (Term(name=name, loss=name, to="teacher") for name in ("squares", "broken"))
    # two bfloat16 logits, both in float32, their difference, its square, and slopes: 16 to 32 bytes
    assert 16 <= bytes_per_logit([squares], 2, COLUMNS) <= 32
    assert bytes_per_logit([broken], 2, COLUMNS) is None
