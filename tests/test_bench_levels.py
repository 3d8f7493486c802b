"""The levels of `make bench` on tiny sizes, and the naive ways that they compare ours with."""

import math
from contextlib import contextmanager

import psutil
import pytest
import torch

from scripts.bench import data, loss, machine, matrix, peers, realistic, rounds, shared, startup, step
from scripts.bench.allocated import bytes_of, peak_bytes
from scripts.bench.explicit_pairs import dbild_of_pairs, of_sorted_rows
from scripts.bench.judge import targets
from scripts.bench.pairs import MIDDLING, SMALL, Size, batch, build, paper
from scripts.bench.rounds import Effort, Running, Variant
from switchkd_cli.engine.losses.dbild import dbild
from switchkd_cli.engine.models.llava_parts import LLAVA
from switchkd_cli.recipe.load import load_many
from tests.support import tiny
from tests.support.registered_losses import effective_k

ONCE = Effort(1, 1)
LANGUAGE = {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
LANGUAGE |= {"initializer_range": 0.3}  # large enough for losses that are no rounding error
TINY = Size(
    "tiny",
    rows=3,
    text=12,
    vocabulary=2000,
    tower=tiny.VISION,
    student={"hidden_size": 16, "num_hidden_layers": 1, **LANGUAGE},
    teacher={"hidden_size": 32, "num_hidden_layers": 2, **LANGUAGE},
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair():
    return build(TINY, CPU)


# naive ways


WAYS = {"masked": {}, "cut": {"cut": True}, "of sorted rows": {"highest": of_sorted_rows}}


@pytest.mark.parametrize("window", [64, 256, None])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_explicit_pairs_are_dbild(window, way):
    teacher, student = (logits.double() for logits in realistic.logits(4, 300, seed=3))
    found = []
    for loss_of, more in ((dbild_of_pairs, way), (dbild, {})):
        of = student.clone().requires_grad_()
        values = loss_of(teacher, of, window=window, **more)
        values.sum().backward()
        found.append((values.detach(), of.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
    assert found[0][0].min() > 1e-4


@pytest.mark.parametrize("naive", [row for row in step.ROWS if row.naive], ids=lambda row: row.name)
def test_three_whole_forward_passes_are_the_packages_step(pair, naive):
    given = batch(TINY, pair, CPU)
    assert given.input_ids.shape == (3, 16) and len(set(given.turn.ge(0).sum(1).tolist())) > 1  # padded
    stage = step.stage_of(naive, TINY.rows)
    with step._package(pair, stage) as (ours, _):
        figures = ours(given)
    with step._naive(pair, stage, naive.naive) as (three, _):
        found = three(given)
    for name in ("loss/ce", "loss/align", "loss/vsd"):
        assert found[name] == pytest.approx(figures[name], rel=1e-5), name
        assert found[name] > 1e-3
    assert found["grad_norm"] == pytest.approx(figures["grad_norm"], rel=1e-4)


# what is measured on


def test_logits_have_their_knee_where_a_language_models_is():
    k = effective_k(realistic.logits(3, 151_936)[0])
    assert ((k > 4000) & (k < 6000)).all(), k


def test_states_give_such_logits_behind_their_heads():
    heads = realistic.head(30_000, 512, 0), realistic.head(30_000, 256, 1)
    for states, head in zip(realistic.states(3, heads), heads, strict=True):
        share = effective_k(states @ head.T) / 30_000
        assert ((share > 0.02) & (share < 0.05)).all(), share


def test_positions_follow_the_free_memory(monkeypatch):
    monkeypatch.setattr(loss, "MOST", 1024)
    widths = loss.WIDTHS[False]
    few, more = (loss.positions_that_fit(gib * 2**30, widths) for gib in (12, 80))
    assert 8 <= few < more <= loss.MOST
    assert math.log2(few).is_integer()
    assert loss.positions_that_fit(2**20, widths) == 8


def test_the_papers_shapes_are_its_models():
    student, teacher = (LLAVA.shape(config) for config in paper("3B").configs())
    assert vars(student.vision) == vars(teacher.vision) and student.vision.positions == 729
    assert student.language.vocabulary == teacher.language.vocabulary == 151_936
    layers = teacher.language.layers * teacher.language.weights
    assert layers + 2048 * 151_936 == pytest.approx(3.09e9, rel=0.01)  # Qwen2.5-3B's parameters, as published


def test_the_small_pair_takes_steps():
    pair = build(SMALL, CPU)
    assert {p.dtype for model in (pair.student, pair.teacher) for p in model.parameters()} == {torch.float32}
    stage = step.stage_of(step.Row("both", step.SWITCH), SMALL.rows)
    with step._package(pair, stage) as (ours, _):
        given = batch(SMALL, pair, CPU)
        assert ours(given)["loss"] == pytest.approx(ours(given)["loss"], rel=1e-3)  # the rate is next to 0


def test_the_small_pair_is_the_playgrounds():
    student, teacher = (LLAVA.shape(config) for config in SMALL.configs())
    assert vars(student.vision) == vars(teacher.vision)
    assert (student.language.width, teacher.language.width) == (96, 128)


def test_the_machine_is_reported():
    found = machine.look()
    assert found.cores >= 1 and found.memory_bytes > 2**28
    assert found.loaded == (found.load[0] > 0.25 * found.cores)


# how it is measured


def test_the_most_bytes_alive_at_once_are_counted():
    """Two tensors of 4 MiB at a time, one after another; what was there before does not count."""
    kept = torch.ones(2**20)

    def work() -> None:
        for _ in range(3):
            pair = kept.clone(), kept.clone()
            del pair

    assert peak_bytes(work) == 2 * 2**22
    assert bytes_of([kept, kept]) == 2**22


def test_variants_take_turns_and_the_first_run_of_each_turn_is_not_timed(monkeypatch):
    clock, ran = [0.0], []
    monkeypatch.setattr(rounds, "timer", lambda: clock[0])

    def variant(name: str, *seconds: float) -> Variant:
        @contextmanager
        def ready():
            turn = iter(seconds)

            def run() -> None:
                ran.append(name)
                clock[0] += next(turn)

            yield Running({"run": run}, alive=lambda: 7, figures=lambda: {"now": clock[0]}, peak=lambda: 5)

        return Variant(name, ready)

    found = rounds.measure("g", [variant("a", 100, 1, 2), variant("b", 100, 4, 6)], Effort(2, 2))
    a, b = found
    assert ran == [*"ab", *"aaabbb", *"bbbaaa"]
    assert a.seconds.rounds == [1.5, 1.5] and b.seconds.rounds == [5, 5]
    assert b.time_ratio.median == pytest.approx(5 / 1.5)
    assert (a.alive_bytes, a.extra_bytes, a.peak_bytes) == (7, 5, 12)
    assert a.figures["now"] > 0


def test_a_variant_without_memory_fails_alone():
    @contextmanager
    def ready():
        yield Running({"run": dict}, peak=int)

    @contextmanager
    def too_big():
        yield Running({"run": lambda: (_ for _ in ()).throw(MemoryError)})

    first, second = rounds.measure("g", [Variant("a", ready), Variant("b", too_big)], ONCE)
    assert second.failed == "out of memory" and second.seconds is None
    assert first.seconds is not None


# the levels


def test_the_loss_level_and_its_targets():
    level = loss.measure_at(4, 700, (12, 8), ONCE)
    names = {(row.group, row.name) for row in level.rows}
    asked = [target for target in targets() if target.level == "loss"]
    assert asked
    for target in asked:
        assert {(target.group, target.row), (target.group, target.over)} <= names
    for row in level.rows:
        assert row.extra_bytes > 0
        assert row.group == loss.GROWTH or set(row.phases) == {"forward", "backward"}
    naive = level.row(loss.FROM_LOGITS, "explicit pairs, window 256")
    assert naive.extra_bytes > 4 * 256 * 255 / 2 * 4  # each pair is written out
    whole = level.row(loss.FROM_STATES, "forward KL")
    assert whole.extra_bytes > 4 * (700 * 8 + 3 * 4 * 700)  # the head's gradient, logits and theirs


def test_the_step_level(pair):
    level = step.measure_at([TINY], ONCE)
    sft, kd, naive, ours, focused, switch_again, all_again, by_row, kept, naive_window, window = level.rows
    assert [row.name for row in level.rows] == [row.name for row in step.ROWS]
    assert sft.figures["above floor"] == sft.figures["FLOP ratio"] == 1
    assert 1 < kd.figures["FLOP ratio"] < ours.figures["FLOP ratio"] == naive.figures["FLOP ratio"]
    assert focused.figures["FLOP ratio"] == ours.figures["FLOP ratio"]  # no path more
    for row in level.rows:
        expected = row.time_ratio.median / row.figures["FLOP ratio"]
        assert row.figures["above floor"] == pytest.approx(expected)
        weights = sum(p.nbytes for model in (pair.student, pair.teacher) for p in model.parameters())
        assert row.alive_bytes > weights
    # all positions' logits; the layers' inputs alone, of one model and of both
    spared = [row.extra_bytes for row in (naive, ours, switch_again, all_again)]
    assert spared == sorted(set(spared), reverse=True)
    assert naive_window.extra_bytes > window.extra_bytes
    assert naive_window.figures["FLOP ratio"] == window.figures["FLOP ratio"] == ours.figures["FLOP ratio"]
    assert kept.figures["FLOP ratio"] < by_row.figures["FLOP ratio"] == ours.figures["FLOP ratio"]
    assert "MFU" not in ours.figures or torch.cuda.is_available()


def test_a_row_that_spares_operations_has_a_lower_floor(pair):
    given = batch(TINY, pair, CPU)
    rows = (step.Row("r", step.SWITCH, spared=paths) for paths in (frozenset(), step.TEACHER))
    whole, spared = (step.floor(pair, given, row) for row in rows)
    assert 0 < spared < whole


def test_targets_of_steps_and_of_the_matrix_name_what_is_measured():
    groups = {f"{size.name} pair" for size in (SMALL, MIDDLING, paper("3B"), paper("1.5B"))}
    rows = {row.name for row in step.ROWS}
    variants = {(variant.objective, variant.name) for variant in peers.VARIANTS}
    for target in targets():
        if target.level == "step":
            assert target.group in groups and {target.row, target.over or target.row} <= rows
        if target.level == "matrix":
            assert {target.row, target.over} == {matrix.TOGETHER, matrix.APART}
        if target.level == "shared":
            assert target.group in (shared.STEPS, shared.TESTS) and target.row == shared.BESIDE
        if target.level == "peers":
            size, _, objective = target.group.partition(" pair, ")
            assert size in ("small", "wide", "middling") and (objective, target.row) in variants
        assert target.level in ("loss", "step", "matrix", "shared", "peers")


@pytest.mark.parametrize("rows", [matrix.ROWS, matrix.FEW])
def test_the_matrix_is_one_of_the_recipes(rows):
    (runs,) = load_many([matrix.RECIPE], rows, matrix.shorter(7, 4), 1, None, matrix.WORLD).values()
    assert {run.row for run in runs} == set(rows)
    for run in runs:
        assert [stage.steps for stage in run.config.stages] == [7, 7]
        assert run.config.evaluation.items == 4


def test_the_data_level():
    level = data.measure_at([TINY], 9, ONCE)
    alone = [row for row in level.rows if row.group.startswith(data.ALONE)]
    beside = [row for row in level.rows if row.group.startswith(data.BESIDE)]
    assert len(alone) == 2 and len(beside) == 4
    assert all(row.figures["images/s"] > 0 for row in level.rows)
    for row in beside:
        assert 0 <= row.figures["waiting"] < 1
        assert row.figures["appetite, images/s"] >= row.figures["images/s"]


def test_the_start_up_level_counts_processes_and_their_memory():
    commands = {"pass": (("-c", "pass"), 0), "wrong": (("-c", "raise SystemExit(2)"), 2)}
    level = startup.measure_at(commands, ONCE)
    assert all(row.seconds.median > 0 and 2**20 < row.extra_bytes < 2**26 for row in level.rows)


def test_a_command_that_ends_otherwise_is_an_error_with_what_it_said():
    with pytest.raises(RuntimeError, match="exit code 3, not 0:\nno such thing"):
        startup.run(("-c", "import sys; print('no such thing'); sys.exit(3)"), 0)


@pytest.mark.slow
def test_the_evaluation_level():
    from scripts.bench import evaluation

    level = evaluation.measure_at(("pope",), 4, ONCE)
    alone, batched = level.rows
    assert level.setting["questions"] == 4 and level.setting["same answers"] == "100.0%"
    assert alone.figures["answers/s"] > 0 and batched.figures["answers/s"] > 0


def test_beside_busy_processes_a_fair_share_is_taken_from_the_ratio(monkeypatch):
    """Twice the time on half of the cores is fair; the tests take four times as long, twice as much as is fair."""
    beside: list[int] = []

    def children() -> int:
        lines = [child.cmdline() for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        # for a moment after a program has been started its command line is empty
        return sum("os.nice" in " ".join(line) for line in lines) if all(lines) else children()

    def taking(factor: float):
        beside.append(children())
        return {"seconds": factor if children() else 1.0}

    monkeypatch.setattr(shared, "_steps", lambda count: taking(2.0))
    monkeypatch.setattr(shared, "_tests", lambda files: taking(4.0))
    monkeypatch.setattr(shared, "share", lambda: 0.5 if children() else 1.0)
    level = shared.measure_at(steps=1, rounds=2, files=())
    fair = {row.group: row.figures.get("over fair") for row in level.rows if row.name == shared.BESIDE}
    assert fair == {shared.STEPS: 1.0, shared.TESTS: 2.0}
    assert beside == [0, 8] * 4 and children() == 0
    asked = [target for target in targets() if target.level == "shared"]
    assert all(level.row(target.group, target.row).quantity(target.quantity) for target in asked)


def test_the_share_of_the_cores_is_a_share(monkeypatch):
    monkeypatch.setattr(shared, "LOOKED_AT", 0.5)
    assert 0 < shared.share() <= 1.1
