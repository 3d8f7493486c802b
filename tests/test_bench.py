"""What `make bench` makes of its figures: the file, the targets, the tables. Nothing is measured here."""

import io
import subprocess
import sys

import pytest
from pydantic import ValidationError
from rich.console import Console

from scripts.bench import __main__ as command
from scripts.bench.judge import Target, judge, targets
from scripts.bench.results import Bench, Level, Machine, Row, Spread, with_ratios
from scripts.bench.show import show, size

MACHINE = Machine(
    system="Linux x86_64",
    processor="a processor",
    cores=2,
    threads=2,
    memory_bytes=8 * 2**30,
    device="cpu",
    device_bytes=None,
    environment={"OMP_WAIT_POLICY": "PASSIVE"},
    versions={"torch": "2.13"},
    commit="abc",
    load=(0.1, 0.2, 0.3),
    loaded=False,
)


def row(name: str, *rounds: list[float], extra: int | None = None, alive: int = 0, **figures: float) -> Row:
    seconds = Spread.of(rounds) if rounds else None
    return Row(group="work", name=name, seconds=seconds, extra_bytes=extra, alive_bytes=alive, figures=figures)


def bench(*rows: Row, **machine) -> Bench:
    level = Level(title="made up", setting={"positions": 4}, rows=with_ratios(rows) if rows else [])
    return Bench(
        began="2026-01-01T00:00:00+00:00",
        quick=True,
        machine=MACHINE.model_copy(update=machine),
        levels={"made": level},
    )


def target(**told) -> Target:
    return Target.model_validate({"target": "t", "level": "made", "group": "work", "quantity": "seconds"} | told)


def judged(given: Bench, **told) -> tuple[float | None, bool | None]:
    (one,) = judge(given, [target(**told)])
    return one.value, one.met


def test_a_spread_has_the_median_and_quartiles_of_all_runs_and_each_rounds_median():
    found = Spread.of([[1.0, 2.0, 9.0], [3.0, 4.0]])
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)
    assert found.rounds == [2.0, 3.5]
    assert Spread.of([[5.0]]) == Spread(median=5.0, low=5.0, high=5.0, rounds=[5.0])


def test_a_ratio_is_taken_round_by_round():
    """The second round was three times slower for both: of that the ratio says nothing, that of the medians would."""
    slow, fast = Spread.of([[2.0], [6.0], [2.2]]), Spread.of([[1.0], [3.0], [1.0]])
    assert slow.over(fast).rounds == [2.0, 2.0, 2.2]
    assert slow.over(fast).median == 2.0


def test_rows_are_beside_the_first():
    first, other = with_ratios([row("a", [1.0], extra=100), row("b", [3.0], extra=50)])
    assert (first.time_ratio.median, first.memory_ratio) == (1.0, 1.0)
    assert (other.time_ratio.median, other.memory_ratio) == (3.0, 0.5)


def test_a_row_that_failed_has_no_ratio_and_leaves_the_others_theirs():
    failed = Row(group="work", name="big", failed="out of memory")
    _, none, other = with_ratios([row("a", [1.0], extra=10), failed, row("b", [2.0], extra=30)])
    assert (none.time_ratio, none.memory_ratio) == (None, None)
    assert (other.time_ratio.median, other.memory_ratio) == (2.0, 3.0)


def test_the_file_is_read_as_it_was_written():
    given = bench(row("a", [1.0, 2.0], extra=8, alive=4, k=3.0), row("b", [2.0, 3.0]))
    assert Bench.model_validate_json(given.model_dump_json()) == given


@pytest.mark.parametrize("broken", ['"quick": "perhaps"', '"quick": true, "speed": 9'])
def test_another_file_is_refused(broken):
    text = bench().model_dump_json(indent=1).replace('"quick": true', broken)
    with pytest.raises(ValidationError):
        Bench.model_validate_json(text)


def test_a_target_is_met_at_its_bound_and_not_beyond():
    given = bench(row("a", [2.0]), row("b", [4.0]))
    assert judged(given, row="b", over="a", most=2.0) == (2.0, True)
    assert judged(given, row="b", over="a", most=1.9) == (2.0, False)
    assert judged(given, row="b", over="a", least=2.0) == (2.0, True)
    assert judged(given, row="b", over="a", least=2.1) == (2.0, False)


def test_a_target_may_be_of_memory_or_of_a_figure():
    given = bench(row("a", [1.0], extra=10, alive=90), row("b", [1.0], extra=40, alive=160, floor=1.3))
    assert judged(given, row="b", over="a", quantity="extra_bytes", most=5) == (4.0, True)
    assert judged(given, row="b", over="a", quantity="peak_bytes", least=2.5) == (2.0, False)
    assert judged(given, row="b", quantity="floor", most=1.1) == (1.3, False)


@pytest.mark.parametrize(
    "told",
    [
        {"row": "c"},
        {"row": "b", "over": "c"},
        {"row": "b", "group": "rest"},
        {"row": "b", "level": "matrix"},
        {"row": "b", "quantity": "MFU"},
        {"row": "b", "over": "a", "quantity": "extra_bytes"},
    ],
)
def test_what_was_not_measured_is_neither_met_nor_missed(told):
    assert judged(bench(row("a", [1.0]), row("b", [1.0], extra=5)), most=1.0, **told) == (None, None)


@pytest.mark.parametrize("bounds", [{}, {"most": 1.0, "least": 1.0}])
def test_a_target_has_one_bound(bounds):
    with pytest.raises(ValidationError, match="either most or least"):
        target(row="a", **bounds)


def test_the_shipped_targets_can_be_read():
    assert len({told.target for told in targets()}) == len(targets()) > 10


def drawn(given: Bench) -> str:
    screen = Console(file=io.StringIO(), width=140, markup=False)
    show(given, screen)
    return screen.file.getvalue()


def test_the_tables_name_machine_rows_ratios_and_targets():
    text = drawn(bench(row("a", [0.5], extra=2**20), row("b", [1.5], extra=3 * 2**20, **{"tokens/s": 1234.0})))
    assert "a processor, 2 cores, 8 GiB" in text and "OMP_WAIT_POLICY=PASSIVE" in text
    (line,) = [line.split() for line in text.splitlines() if line.startswith("b ")]
    assert line == ["b", "3", "3", "3", "1.50", "s", "3", "3", "MiB", "1,234"]
    assert text.count("not measured") == len(targets())
    assert "WARNING" not in text


def test_a_machine_that_was_at_work_is_reported():
    assert "WARNING: the machine was at work" in drawn(bench(load=(1.7, 1.0, 1.0), loaded=True))


def test_a_row_without_figures_says_why():
    text = drawn(bench(row("a", [1.0]), Row(group="work", name="big", failed="out of memory")))
    assert "big: out of memory" in text


def test_sizes_are_reported_in_their_unit():
    assert [size(value) for value in (None, 0, 512, 2048, 3 * 2**20, 5 * 2**30)] == [
        "",
        "0",
        "512 B",
        "2 KiB",
        "3 MiB",
        "5 GiB",
    ]


def test_a_level_that_does_not_exist_ends_with_those_that_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "loss", "sleep"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    known = "loss, step, data, startup, evaluation, shared, matrix, peers, gpu, budgets"
    assert f"no such level: sleep (known: {known})" in capsys.readouterr().err


def test_make_hands_levels_and_quick_on():
    asked = ["make", "--no-print-directory", "-n", "bench", "INSTALLED=", "LEVELS=loss step", "QUICK=1"]
    told = subprocess.run(asked, cwd=command.ROOT, capture_output=True, text=True, check=True).stdout
    expected = ["-m", "scripts.bench", "loss", "step", "--quick", "--out", "reports/bench.json"]
    assert told.split()[1:] == expected


def test_the_gpu_level_has_a_file_of_its_own():
    asked = ["make", "--no-print-directory", "-n", "bench", "INSTALLED=", "LEVELS=gpu"]
    told = subprocess.run(asked, cwd=command.ROOT, capture_output=True, text=True, check=True).stdout
    assert told.split()[3:] == ["gpu", "--out", "reports/bench_gpu.json"]


def test_a_level_that_fails_leaves_the_others_and_the_file(monkeypatch, tmp_path, capsys):
    def apart(name, quick, file):
        if name == "loss":
            return "exit code 1"
        found = MACHINE if name == "machine" else Level(title=name, rows=[row("a", [1.0])])
        file.write_text(found.model_dump_json())
        return ""

    monkeypatch.setattr(command, "_apart", apart)
    out = tmp_path / "new" / "bench.json"
    monkeypatch.setattr(sys, "argv", ["bench", "loss", "data", "--quick", "--out", str(out)])
    assert command.main() == 1
    found = Bench.model_validate_json(out.read_text())
    assert found.levels["loss"].failed == "exit code 1" and found.levels["data"].rows
    assert "failed: exit code 1" in capsys.readouterr().out
