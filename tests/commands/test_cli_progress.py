"""The display is a reader of metrics.jsonl."""

import io
import json

from switchkd_cli.terminal.progress import Follower, Matrix, Progress, event, figures, line

STEP = {
    "stage": "distill",
    "step": 30,
    "steps": 300,
    "seconds": 15.0,
    "tokens_per_second": 5120.4,
    "lr": 9.8e-4,
    "loss": 2.31,
    "loss/ce": 1.2,
    "loss/vsd": None,
    "memory_mib": 812.3,
}


def test_a_step_as_a_line():
    assert line(STEP) == (
        "distill 30/300 (10%) · 2:15 left · 5,120 tokens/s · loss 2.31 (ce 1.2, vsd non-finite) · lr 9.8e-04 · 812 MiB"
    )


def test_a_bare_step_as_a_line():
    assert line({"stage": "a", "step": 1, "steps": 2, "loss": 1.0}) == "a 1/2 (50%) · loss 1"
    assert figures({"loss": None}) == "loss non-finite"


def test_events_as_lines():
    assert event({"event": "switch_gap", "value": 0.123456}) == "switch gap: value 0.1235"
    assert event({"event": "warning", "text": "3 rows left out"}) == "warning: 3 rows left out"
    assert event({"event": "stage", "stage": "distill", "rows": 8}) == "stage distill: rows 8"


def test_a_follower_waits_for_whole_lines(tmp_path):
    file = tmp_path / "metrics.jsonl"
    follower = Follower(file, "x")
    assert list(follower.read()) == []
    file.write_text('{"a": 1}\n{"a"')
    assert list(follower.read()) == [{"a": 1}]
    with file.open("a") as stream:
        stream.write(": 2}\n")
    assert list(follower.read()) == [{"a": 2}]
    assert list(follower.read()) == []


def shown(tmp_path, entries, stream):
    file = tmp_path / "metrics.jsonl"
    with Progress(stream) as display:
        display.follow(file, "run")
        file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return stream.getvalue()


def test_a_follower_starts_again_when_another_file_takes_the_place(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n')
    follower = Follower(file, "x")
    assert len(list(follower.read())) == 2
    file.rename(tmp_path / "unfinished.jsonl")
    file.write_text('{"event": "a longer first line than before, read from its start"}\n')
    assert [list(entry) for entry in follower.read()] == [["event"]]


def test_an_unreadable_line_is_reported_and_the_display_goes_on(tmp_path):
    stream, file = io.StringIO(), tmp_path / "metrics.jsonl"
    with Progress(stream) as display:
        display.follow(file, "run")
        file.write_text("{torn\n" + json.dumps({**STEP, "step": 1}) + "\n")
        display.read()
    told, step = stream.getvalue().splitlines()
    assert "unreadable line" in told and str(file) in told
    assert step.startswith("run: ")


def test_plain_output_has_ten_lines_a_stage(tmp_path):
    entries = [{**STEP, "stage": stage, "step": step} for stage in ("a", "b") for step in range(1, 301)]
    lines = shown(tmp_path, entries, io.StringIO()).splitlines()
    assert len(lines) == 22  # the first step of each stage, then every tenth
    assert lines[1].startswith("run: a 30/300 (10%)") and lines[-1].startswith("run: b 300/300 (100%)")


def test_short_stages_print_every_step(tmp_path):
    entries = [{**STEP, "step": step, "steps": 3} for step in (1, 2, 3)]
    assert len(shown(tmp_path, entries, io.StringIO()).splitlines()) == 3


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_stage_steps_terms_and_no_markup(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    text = shown(tmp_path, [{"event": "warning", "text": "[red]x[/red]"}, STEP], Terminal())
    assert "[red]x[/red]" in text


def test_the_live_drawing(tmp_path):
    from rich.console import Console

    display = Progress(io.StringIO())
    display.follow(tmp_path / "m", "Switch-KD [a]")
    display.matrix.running[0].step = STEP
    out = io.StringIO()
    Console(file=out, width=160, markup=False).print(display.draw())
    text = out.getvalue()
    for part in (
        "Switch-KD [a]",
        "distill",
        "30/300",
        "2:15 left",
        "5,120 tokens/s",
        "ce 1.2",
        "lr 9.8e-04",
        "812 MiB",
    ):
        assert part in text


def matrix_in_progress(tmp_path, jobs=1):
    """Three runs of a row that took 90 seconds, the first of them at its STEP."""
    named = (("Switch-KD", "a"), ("SFT", "a"), ("VSD", "b"))
    waiting = [Follower(tmp_path / name, name, row=row, last="distill") for name, row in named]
    matrix = Matrix(waiting, jobs=jobs, took={"a": [90.0]}, now=lambda: 0.0)
    matrix.start()
    return matrix


def test_the_live_drawing_opens_with_the_matrix(tmp_path):
    from rich.console import Console

    display = Progress(io.StringIO(), matrix_in_progress(tmp_path, jobs=2))
    display.matrix.start()
    display.matrix.running[0].step = STEP
    out = io.StringIO()
    Console(file=out, width=160, markup=False).print(display.draw())
    first, second, _, fourth = out.getvalue().splitlines()
    assert fourth.strip() == "SFT  no step yet"
    assert "1 of 4 done, 2 running, 1 to come · 3:00 left · ends about " in first
    assert "Switch-KD" in second and "30/300" in second


def test_plain_output_reports_the_matrix_s_end_as_soon_as_it_can_be_estimated(tmp_path):
    stream, file = io.StringIO(), tmp_path / "m"
    first, second = (Follower(path, "run", row="a", last="distill") for path in (file, tmp_path / "n"))
    matrix = Matrix([first, second], jobs=1, now=lambda: 0.0)
    matrix.start()
    with Progress(stream, matrix) as display:
        file.write_text("".join(json.dumps({**STEP, "step": n}) + "\n" for n in range(1, 31)))
        display.read()
        matrix.end(first, failed=False)
        display.tell_matrix()
    told = [line for line in stream.getvalue().splitlines() if " done" in line]
    assert len(told) == 2
    assert told[0].startswith("0 of 2 done, 1 running, 1 to come · ") and "ends about" in told[0]
    assert told[1].startswith("1 of 2 done, 1 to come")


def test_a_terminal_keeps_only_the_matrix_s_last_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    matrix = matrix_in_progress(tmp_path)
    said = []
    with Progress(Terminal(), matrix) as display:
        monkeypatch.setattr(display, "say", said.append)
        display.tell_matrix()
        assert said == []
        matrix.end(matrix.running[0], failed=True)
        for _ in range(2):
            matrix.start()
            matrix.end(matrix.running[0], failed=False)
        display.tell_matrix()
    assert said == ["3 of 4 done, 1 failed"]


def test_the_display_ends_with_the_block(tmp_path):
    import threading

    with Progress() as display:
        display.follow(tmp_path / "m", "x")
        assert any(thread.name == "progress" for thread in threading.enumerate())
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_the_newest_validation_stays_on_the_display_until_its_stage_ends(tmp_path):
    found = {"validation/loss": 1.2345678, "validation/loss/ce": 1.0, "validation/exact_match": 0.25}
    entries = [
        {**STEP, "steps": 3, "step": 1} | found,
        {**STEP, "steps": 3, "step": 2},
        {**STEP, "stage": "b", "step": 1},
    ]
    lines = shown(tmp_path, entries, io.StringIO()).splitlines()
    assert [line.endswith(" · validation loss 1.235, exact match 0.25") for line in lines] == [True, True, False]
    assert "validation" not in lines[2]
