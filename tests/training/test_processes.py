"""Several processes (gloo) take the same steps as one, however the batch and the model are divided.

All trainings with the same number of processes run in one set of them; each test checks their results.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from switchkd_cli.engine.training.checkpointing import read_state
from switchkd_cli.engine.training.data_loader import rows_of_process
from switchkd_cli.errors import UserError
from switchkd_cli.planning.preflight import check_batches
from tests.support import stock_models, together
from tests.support.together import ALIGN, CE, VSD

pytestmark = pytest.mark.slow
VSD_ALONE = {"objective": [VSD], "train": ["vision"]}
PROJECTOR_ALONE = {"objective": [CE], "train": ["projector"], "until": 2}
WARM_UP = {"adapted": True, "objective": [VSD], "train": ["adapter"], "micro": 1}  # most micro-batches have no image
ADAPTED = {"adapted": True, "objective": [CE, ALIGN, VSD], "train": ["vision", "projector", "language", "adapter"]}
ADAPTED |= {"micro": 2}
LORA = {
    f"lora, {how}": {"micro": 2, "lora": {"rank": 2}} | more
    for how, more in {
        "torch": {},
        "dora, zero 2": {"zero": 2, "lora": {"rank": 2, "dora": True}},
        "zero 3": {"zero": 3},
        "4 bits, zero 3": {"zero": 3, "lora": {"rank": 2, "bits": 4}},
        "4 bits, fsdp": {"launcher": "fsdp", "lora": {"rank": 2, "bits": 4}},
    }.items()
}
if any(importlib.util.find_spec(name) is None for name in ("peft", "bitsandbytes")):
    LORA = {}
BITS = {"bits": 4, "until": 1}
ROUNDED = {"rounded, fsdp": BITS | {"launcher": "fsdp"}, "rounded, zero 3": BITS | {"zero": 3}}
if importlib.util.find_spec("torchao") is None:
    ROUNDED = {}
FAMILY = {"objective": [CE, ALIGN, VSD], "until": 1}
OWN = {"answers": {"own": 0.5, "max_tokens": 4}, "micro": 1}
FAMILIES = {
    f"{name}, {how}": FAMILY | more | {"saved": name}
    for name in stock_models.TOKENIZERS
    for how, more in (("torch", {}), ("zero 3, recomputed", {"zero": 3, "micro": 2, "recomputed": True}))
}
MIXED = {"torch": {}, "zero 2": {"zero": 2}, "zero 3": {"zero": 3}, "fsdp": {"launcher": "fsdp"}}
CASES = {
    2: {
        "torch, micro 1": {"micro": 1},
        "torch, micro 2": {"micro": 2},
        "torch, micro 4": {"micro": 4},
        "torch, sharded teacher": {"micro": 2, "sharded": True, "validated": True},
        "zero 2, sharded teacher": {"micro": 2, "zero": 2, "sharded": True, "validated": True},
        "zero 1": {"zero": 1, "micro": 2},
        "zero 2": {"zero": 2, "micro": 2},
        "zero 3": {"zero": 3, "micro": 2, "validated": True},
        "zero 3, offload": {"zero": 3, "micro": 2, "offload": "parameters"},
        "fsdp": {"launcher": "fsdp", "micro": 2, "validated": True},
        "fsdp, recomputed": {"launcher": "fsdp", "micro": 1, "recomputed": True},
        "vsd alone, fsdp": VSD_ALONE | {"micro": 1, "launcher": "fsdp"},
        "adapted, fsdp": ADAPTED | {"launcher": "fsdp"},
        "gradient, fsdp": {"micro": 1, "until": 1, "launcher": "fsdp"},
        "projector alone, fsdp": {"launcher": "fsdp", "micro": 1, **PROJECTOR_ALONE},
        "spoiled, fsdp": {"spoil": True, "launcher": "fsdp"},
        "interrupted, fsdp": {"launcher": "fsdp", "micro": 4, "until": 2},
        "torch, recomputed": {"micro": 2, "recomputed": True, "validated": True},
        "zero 2, recomputed": {"zero": 2, "micro": 2, "recomputed": True},
        "zero 3, recomputed": {"zero": 3, "micro": 2, "recomputed": True},
        "vsd alone, torch": VSD_ALONE | {"micro": 1},
        "vsd alone, zero 3": VSD_ALONE | {"micro": 1, "zero": 3},
        **{f"warm-up, {n}": WARM_UP | {"zero": zero} for n, zero in {"torch": 0, "zero 2": 2, "zero 3": 3}.items()},
        **{f"adapted, {n}": ADAPTED | {"zero": zero} for n, zero in {"torch": 0, "zero 2": 2, "zero 3": 3}.items()},
        "gradient, torch": {"micro": 2, "until": 1},
        "gradient, zero 1": {"zero": 1, "micro": 1, "until": 1},
        "gradient, zero 2": {"zero": 2, "micro": 1, "until": 1},
        "gradient, zero 3": {"zero": 3, "micro": 1, "until": 1},
        **{f"mixed, {n}": {"mixed": True, "micro": 2, **how} for n, how in MIXED.items()},
        **{f"own, {n}": OWN | {"zero": zero} for n, zero in {"torch": 0, "zero 2": 2, "zero 3": 3}.items()},
        "own, fsdp": OWN | {"launcher": "fsdp"},
        "interrupted, zero 3": {"zero": 3, "micro": 4, "until": 2},
        "interrupted, zero 1": {"zero": 1, "micro": 4, "until": 2},
        "bf16, zero 1": {"zero": 1, "micro": 2, "precision": "bf16"},
        "bf16, zero 2": {"zero": 2, "micro": 2, "precision": "bf16"},
        "bf16, zero 3": {"zero": 3, "micro": 2, "precision": "bf16"},
        **{f"projector alone, zero {zero}": {"zero": zero, "micro": 1, **PROJECTOR_ALONE} for zero in (0, 2, 3)},
        "spoiled, torch": {"spoil": True},
        "spoiled, zero 2": {"spoil": True, "zero": 2},
        "spoiled, zero 3": {"spoil": True, "zero": 3},
        **LORA,
        **ROUNDED,
        **FAMILIES,
    },
    4: {
        "torch, micro 1": {"micro": 1},
        "torch, micro 2": {"micro": 2},
        "zero 2": {"zero": 2, "micro": 1},
        "zero 3": {"zero": 3, "micro": 2},
        "resumed, torch": {"micro": 1, "after": "INTERRUPTED"},
        "resumed, zero 2": {"zero": 2, "after": "INTERRUPTED"},
        "resumed, zero 3": {"zero": 3, "after": "INTERRUPTED"},
        "resumed, fsdp": {"launcher": "fsdp", "micro": 2, "after": "INTERRUPTED"},
    },
}
TRACED = [
    (count, name) for count, cases in CASES.items() for name in cases if name.startswith(("torch", "zero", "fsdp"))
]


def run(count: int, folder: Path, cases: dict) -> dict[str, tuple[list[dict], dict]]:
    """Return the lines and the state of each case in `count` processes."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    asked = [json.dumps(case) for case in cases.values()]
    done = subprocess.run(
        [sys.executable, *command, together.__file__, str(folder), *asked],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: left(folder / f"case{number}") for number, name in enumerate(cases)}


def left(place: Path) -> tuple[list[dict], dict]:
    return json.loads((place / "lines.json").read_text()), read_state(place / "state")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, no micro-batches: the lines of three steps, the state after them, and after the first."""
    folder = tmp_path_factory.mktemp("alone")
    lines, state, _ = together.trained(folder)
    return lines, state, together.trained(folder, until=1)[1]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A function that trains a case in one process, each case once, and returns its lines and its state."""
    known = {}

    def trained(**case) -> tuple[list[dict], dict]:
        if (name := json.dumps(case)) not in known:
            known[name] = together.trained(tmp_path_factory.mktemp("one"), **case)[:2]
        return known[name]

    return trained


@pytest.fixture(scope="module")
def two_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Two models of each family, saved by transformers' own classes."""
    folder = tmp_path_factory.mktemp("families")
    for name in {case["saved"] for case in FAMILIES.values()}:
        for who, size in (("student", {"width": 32, "layers": 2}), ("teacher", {"width": 48, "layers": 3, "seed": 2})):
            stock_models.save(name, folder / name / who, **size)
    return folder


@pytest.fixture(scope="module")
def two(two_folder, families):
    cases = CASES[2].items()
    return run(2, two_folder, {n: c | {"saved": str(families / c["saved"])} if "saved" in c else c for n, c in cases})


@pytest.fixture(scope="module")
def four(tmp_path_factory, two, two_folder):
    folder = tmp_path_factory.mktemp("four")
    after = two_folder / f"case{list(CASES[2]).index('interrupted, zero 3')}"
    cases = {
        name: {k: str(after / "state") if v == "INTERRUPTED" else v for k, v in case.items()}
        for name, case in CASES[4].items()
    }
    return run(4, folder, cases)


@pytest.fixture(scope="module")
def results(two, four):
    return {2: two, 4: four}


def close(some: dict, others: dict, **tolerances: float) -> None:
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        torch.testing.assert_close(tensor, others[name], msg=lambda m, name=name: f"{name}: {m}", **tolerances)


@pytest.mark.parametrize("split", range(2, 9))
def test_a_batch_that_can_t_be_shared_out_evenly_is_refused(split):
    stage = together.stage_of(micro=3)
    if together.BATCH % split:
        run = SimpleNamespace(config=SimpleNamespace(stages=[stage]))
        with pytest.raises(UserError, match=f"multiple of the {split} processes, got 8"):
            check_batches([run], split)
    else:
        assert together.BATCH % (stage.micro_batch_of(split) * split) == 0
        assert stage.micro_batch_of(split) <= 3


@pytest.mark.parametrize(("count", "micro"), [(1, 8), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_every_step_has_the_same_rows_for_any_number_of_processes(count, micro):
    visited = list(range(24))
    shares = [rows_of_process(visited, micro, rank, count) for rank in range(count)]
    each = len(visited) // count // 3
    for step in range(3):
        rows = [row for share in shares for row in share[step * each : (step + 1) * each]]
        assert sorted(rows) == visited[8 * step : 8 * (step + 1)]


@pytest.mark.parametrize("name", [name for name, case in CASES[2].items() if case.get("validated")])
def test_a_validation_has_the_figures_of_one_process_and_changes_no_step(name, two, alone, one):
    lines, _ = one(validated=True)
    for line, expected, without in zip(two[name][0], lines, alone[0], strict=True):
        figures = {key for key in expected if key.startswith("validation/")}
        assert len(figures) == 7 and figures == {key for key in line if key.startswith("validation/")}
        for figure in figures:
            assert line[figure] == pytest.approx(expected[figure], rel=2e-5, abs=1e-7), figure
        assert line["loss"] == pytest.approx(without["loss"], rel=2e-5)
        assert expected["loss"] == without["loss"]


@pytest.mark.parametrize("name", MIXED)
def test_a_mixer_chooses_the_rows_of_one_process(name, two, one):
    """At the student's initial weights, and after each step."""
    lines, state = one(mixed=True, micro=2)
    found, theirs = two[f"mixed, {name}"]
    assert torch.equal(theirs["rounds"]["rows"], state["rounds"]["rows"])
    assert [line["after"] for line in theirs["mixed"]] == [0, 1, 2]
    for figure in ("score", "score/all", "again", "never"):
        expected = [line[figure] for line in state["mixed"]]
        assert [line[figure] for line in theirs["mixed"]] == pytest.approx(expected, rel=1e-4, abs=1e-7), figure
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in lines], rel=1e-4)


@pytest.mark.parametrize("name", ["own, torch", "own, zero 2", "own, zero 3", "own, fsdp"])
def test_own_answers_are_those_of_one_process(name, two, one):
    lines, _ = one(**OWN)
    for line, expected in zip(two[name][0], lines, strict=True):
        for figure in [key for key in expected if key.startswith(("loss", "own/"))]:
            assert line[figure] == pytest.approx(expected[figure], rel=2e-5, abs=1e-7), figure


@pytest.mark.parametrize(("count", "name"), TRACED)
def test_losses_and_gradient_norms_are_those_of_one_process(count, name, results, alone):
    lines, state = results[count][name]
    for line, expected in zip(lines, alone[0], strict=True):
        for figure in [key for key in expected if key.startswith("loss") or key == "grad_norm"]:
            assert line[figure] == pytest.approx(expected[figure], rel=2e-5, abs=1e-7), figure
    close(state["model"], alone[1]["model"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("count", "name"), TRACED)
def test_what_images_are_worth_to_the_teacher_is_that_of_one_process(count, name, results, alone):
    ((told,), (expected,)) = results[count][name][1]["sight"], alone[1]["sight"]
    for figure in ("images", "blank_images"):  # another row's image is one of the same process
        assert told[figure] == pytest.approx(expected[figure], rel=1e-5), figure


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_the_losses_and_gradients_of_one_process(name, two, families, one):
    lines, state = one(**FAMILY, saved=str(families / FAMILIES[name]["saved"]))
    for figure in ("loss/ce", "loss/align", "loss/vsd"):
        assert two[name][0][0][figure] == pytest.approx(lines[0][figure], rel=1e-4), figure
    close(together.gradients(two[name][1]), together.gradients(state), rtol=1e-3, atol=1e-5)


def test_in_some_step_a_process_sees_no_picture_while_another_does(results):
    for count in (2, 4):
        seen = results[count]["torch, micro 1"][1]["pictures"]
        assert any(min(step) == 0 < max(step) for step in zip(*seen, strict=True)), seen


@pytest.mark.parametrize(("count", "name"), TRACED)
def test_moments_are_whole_and_those_of_one_process(count, name, results, alone):
    state = results[count][name][1]
    assert state["moments"].keys() == alone[1]["moments"].keys()
    for parameter, kept in alone[1]["moments"].items():
        close(state["moments"][parameter], kept, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES[2] if name.startswith("gradient")])
def test_one_step_has_the_gradient_of_one_process(name, two, alone):
    """Every gradient, also through the frozen teacher, from AdamW's first moment after one step."""
    close(together.gradients(two[name][1]), together.gradients(alone[2]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["vsd alone, torch", "vsd alone, zero 3", "vsd alone, fsdp"])
def test_the_switch_alone_trains_the_vision_tower_through_the_frozen_teacher(name, two, one):
    _, expected = one(**VSD_ALONE)
    got = two[name][1]
    assert all(moments["exp_avg"].any() for moments in got["moments"].values())
    close(together.gradients(got), together.gradients(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES[2] if name.startswith("projector alone")])
def test_a_process_without_an_image_keeps_none_waiting_where_the_language_model_is_frozen(name, two, one):
    lines, state = two[name]
    expected, alone = one(**PROJECTOR_ALONE)
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=2e-5)
    close(together.gradients(state), together.gradients(alone), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES[2] if name.startswith(("warm-up", "adapted"))])
def test_an_adapter_learns_what_it_learns_in_one_process(name, two, one):
    lines, state = two[name]
    case = {key: value for key, value in CASES[2][name].items() if key not in ("zero", "micro", "launcher")}
    expected, alone = one(**case)
    assert any("switch_adapter" in parameter for parameter in state["model"])
    assert [line["loss/vsd"] for line in lines] == pytest.approx([line["loss/vsd"] for line in expected], rel=1e-4)
    close(together.gradients(state), together.gradients(alone), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "whole"), [("torch, sharded teacher", "torch, micro 2"), ("zero 2, sharded teacher", "zero 2")]
)
def test_a_sharded_teacher_changes_no_bit_and_takes_half_the_bytes(name, whole, two):
    (lines, state), (expected, other) = two[name], two[whole]
    assert [line["loss"] for line in lines] == [line["loss"] for line in expected]
    close(state["model"], other["model"], rtol=0, atol=0)
    assert 2 * state["teacher"] == other["teacher"]


@pytest.mark.skipif(not LORA, reason="peft or bitsandbytes is not installed")
@pytest.mark.parametrize("name", LORA)
def test_adapters_of_low_rank_learn_what_they_learn_in_one_process(name, two, one):
    lines, state = two[name]
    expected, alone = one(lora=CASES[2][name]["lora"])
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=2e-5)
    close(state["model"], alone["model"], rtol=1e-4, atol=2e-5)


@pytest.mark.skipif(not ROUNDED, reason="torchao is not installed")
@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_weights_learn_what_they_learn_in_one_process(name, two, one):
    lines, state = two[name]
    expected, alone = one(**BITS)
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=2e-5)
    close(together.gradients(state), together.gradients(alone), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["bf16, zero 1", "bf16, zero 2", "bf16, zero 3"])
def test_bf16_weights_follow_the_float32_trace(name, two, alone):
    lines, state = two[name]
    for line, expected in zip(lines, alone[0], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    assert {tensor.dtype for tensor in state["model"].values()} == {torch.float32}


@pytest.mark.parametrize("name", ["resumed, torch", "resumed, zero 2", "resumed, zero 3", "resumed, fsdp"])
def test_four_processes_go_on_where_two_stopped(name, four, alone):
    """Resumed with another number of processes or ZeRO stage: checkpoints are complete."""
    lines, state = four[name]
    assert [line["step"] for line in lines] == [together.STEPS]
    assert lines[0]["loss"] == pytest.approx(alone[0][-1]["loss"], rel=2e-5)
    close(state["model"], alone[1]["model"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["interrupted, zero 3", "interrupted, zero 1", "interrupted, fsdp"])
def test_one_process_resumes_where_two_stopped(name, two, alone, tmp_path, two_folder):
    after = two_folder / f"case{list(CASES[2]).index(name)}" / "state"
    lines, state, _ = together.trained(tmp_path, after=after)
    assert lines[0]["loss"] == pytest.approx(alone[0][-1]["loss"], rel=2e-5)
    close(state["model"], alone[1]["model"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["spoiled, torch", "spoiled, zero 2", "spoiled, zero 3", "spoiled, fsdp"])
def test_what_is_no_number_in_one_process_changes_no_weight_in_any(name, two):
    _, state = two[name]
    assert "step 1: loss/align is nan; examples" in state["error"]
    assert state["moments"] == {}
    before = {name: p.detach() for name, p in together.untrained().named_parameters()}
    ours = {name: p for name, p in state["model"].items() if not name.startswith("adapters.")}
    close(ours, {name: before[name] for name in ours}, rtol=0, atol=0)


@pytest.mark.parametrize(("count", "name"), [(2, "torch, micro 1"), (2, "zero 2"), (4, "zero 2")])
def test_one_line_a_step_has_the_diagnostics_of_all(count, name, results, alone):
    lines = results[count][name][0]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0].keys() == alone[0][0].keys()
