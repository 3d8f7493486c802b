"""The levels of `make bench` that are only measured when named: next to other libraries, and on a GPU."""

import stat

import pytest

from scripts.bench import gpu, gpu_parts, peers, step
from scripts.bench.pairs import batch, build
from scripts.bench.peers import KL, SFT, VARIANTS, Variant
from scripts.bench.results import Row
from scripts.bench.three_forwards import EveryPosition
from switchkd_cli.engine.losses.dbild import dbild
from tests.test_bench_levels import CPU, ONCE, TINY

OWN = [variant for variant in VARIANTS if not variant.environment]
OTHER = Variant(KL, "another objective", "plain", {"objective": "sft"})
BROKEN = Variant(KL, "one that fails", "plain", {"objective": "kl", "surprise": 1})


def test_a_loss_at_every_position_masked_afterwards_is_the_packages_step():
    pair = build(TINY, CPU)
    given = batch(TINY, pair, CPU)
    naive = next(row for row in step.ROWS if row.naive is dbild)
    stage = step.stage_of(naive, TINY.rows)
    with step._package(pair, stage) as (ours, _):
        figures = ours(given)
    with step._naive(pair, stage, dbild, EveryPosition) as (everywhere, _):
        found = everywhere(given)
    for name in ("loss/ce", "loss/align", "loss/vsd"):
        assert found[name] == pytest.approx(figures[name], rel=1e-5), name
        assert found[name] > 1e-3


@pytest.mark.slow
def test_loops_have_our_loss_and_what_has_another_or_fails_has_no_figures():
    level = peers.measure_at([TINY], [*OWN, OTHER, BROKEN], ONCE)
    rows = {(row.group.partition(", ")[2], row.name): row for row in level.rows}
    assert rows.pop((KL, OTHER.name)).failed.startswith("another loss: ")
    assert rows.pop((KL, BROKEN.name)).failed.startswith("TypeError: ")
    assert len(rows) == len(OWN)
    for row in rows.values():
        assert not row.failed and row.seconds.median > 0 and row.extra_bytes > 0
    for objective in peers.TERMS:
        ours = rows[objective, peers.OURS]
        assert ours.time_ratio.median == 1 and ours.figures["over leanest"] > 0 and ours.figures["above floor"] > 0
    assert rows[SFT, "ours, activation checkpointing"].extra_bytes < rows[SFT, "ours"].extra_bytes


def needs(environment):
    if not (peers.ROOT / ".venv-peers" / environment / "ready").is_file():
        pytest.skip(f"{environment} was not installed by `make bench LEVELS=peers`")


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["trl", "ms-swift"])
def test_other_libraries_have_our_loss(environment):
    needs(environment)
    theirs = [variant for variant in VARIANTS if variant.environment == environment]
    ours = [v for v in VARIANTS if v.name == peers.OURS and v.objective in {t.objective for t in theirs}]
    level = peers.measure_at([TINY], [*ours, *theirs], ONCE)
    assert [row.failed for row in level.rows] == [""] * (len(ours) + len(theirs))


@pytest.mark.slow
def test_lmms_evals_model_has_our_answers():
    needs("decord")
    level = peers.measure_at([], [], ONCE, peers.READERS)
    assert [row.failed for row in level.rows] == [""] * 3
    assert all(row.figures["answers/s"] > 0 for row in level.rows)


def test_a_package_that_can_not_be_had_is_skipped_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setattr(peers, "PACKAGES", {"trl": ("trl==1.16.0",)})
    monkeypatch.setattr(peers, "_done", lambda command: (_ for _ in ()).throw(RuntimeError("no network")))
    level = peers.measure_at([], [Variant(SFT, "TRL", "trl_sft", environment="trl")], ONCE)
    assert level.setting["trl"] == "skipped: no network"


@pytest.mark.slow
def test_the_gpu_day_runs_at_toy_size():
    """Three of its parts; all of them take seven minutes on two cores: `python -m scripts.bench gpu`."""
    if gpu_parts.GPU:
        pytest.skip("with a GPU it takes eight minutes of it: make bench LEVELS=gpu")
    parts = "parity", "steps", "zero"
    level = gpu.measure_at(parts, gpu.BUDGET)
    assert level.setting["device"] == "toy size on CPU"
    assert all(row.group.endswith("on toy size on CPU") for row in level.rows)
    assert len({row.group for row in level.rows}) >= len(parts)
    reasons = ("not installed", "No module named", "No viable backend", "left out: over its limit")
    assert all(any(reason in row.failed for reason in reasons) for row in level.rows if row.failed)
    parity = [row for row in level.rows if row.group.startswith("parity")]
    assert len(parity) > 30
    assert all(row.figures["loss, fp32"] == 0 and row.figures["loss, bf16"] < 0.1 for row in parity)
    peaks = [row.figures["peak over plan"] for row in level.rows if row.group.startswith("steps")]
    assert peaks and all(0.5 < peak < 2 for peak in peaks)


def test_every_part_has_a_limit():
    assert list(gpu.LIMITS) == list(gpu_parts.PARTS)
    assert sum(gpu.LIMITS.values()) - gpu.LIMITS["distillation"] < gpu.BUDGET - 60


def test_a_part_that_the_budget_has_no_time_for_is_named():
    (row,) = gpu.measure_at(("parity",), budget=3).rows
    assert row.name == "parity" and row.failed == "left out: the budget is 3 s"


def test_a_part_over_its_limit_keeps_the_rows_that_it_has_and_says_so(monkeypatch, tmp_path):
    program, row = tmp_path / "python", Row(group="g", name="done before")
    program.write_text(f"#!/bin/sh\necho '{row.model_dump_json()}'\nsleep 60\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(gpu.sys, "executable", str(program))
    first, ended = gpu._run_part("steps", 2)
    assert first == row
    assert ended.name == "steps" and ended.failed == "the rest is left out: over its limit of 2 s"
