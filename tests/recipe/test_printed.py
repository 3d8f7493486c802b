"""The paper's printed numbers: written once, in recipes/printed/, and named by the rows of recipes."""

from pathlib import Path

import pytest

from switchkd_cli.benchmarks import TEN
from switchkd_cli.errors import UserError
from switchkd_cli.recipe import named_files, yaml_positions
from switchkd_cli.recipe.load import load
from tests.support.small_recipe import write

RECIPES = Path(__file__).parents[2] / "recipes"
PRINTED = RECIPES / "printed" / "switch_kd.yaml"
INLINE = "paper: {gqa: 61.6, average: 60.1}"


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """A file of printed numbers, in the folder of recipes."""
    (tmp_path / "printed").mkdir()
    file = tmp_path / "printed" / "ours.yaml"
    file.write_text("table-9: {gqa: 50.5, average: 48.0}\nother: {pope: 80.0}\n")
    monkeypatch.setattr(named_files, "FOLDERS", (tmp_path,))
    return file


def test_a_row_names_an_entry_and_gets_its_numbers(tmp_path, printed):
    run = load(write(tmp_path, (INLINE, "paper: table-9")))
    assert run.paper == {"gqa": 50.5, "average": 48.0}
    assert run.key == load(write(tmp_path)).key  # printed numbers are no part of a key


def test_an_unknown_entry_is_named_with_what_is_near(tmp_path, printed):
    file = write(tmp_path, (INLINE, "paper: table9"))
    with pytest.raises(UserError) as caught:
        load(file)
    expected = "rows.switch-kd.paper: unknown printed row, got 'table9' (did you mean 'table-9'?)"
    assert caught.value.problems == (f"{file}:23: {expected}",)


def test_a_mistake_among_the_printed_numbers_is_reported_where_it_was_written(tmp_path, printed):
    printed.write_text("table-9:\n  gqq: 50.5\n")
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, (INLINE, "paper: table-9")))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{printed}:2: rows.switch-kd.paper.gqq: unknown benchmark, got 'gqq'")


def test_printed_numbers_that_are_no_text_are_a_user_s_error(tmp_path, printed):
    printed.write_bytes(b"# caf\xe9\n")
    with pytest.raises(UserError, match="ours.yaml: not readable: 'utf-8' codec"):
        load(write(tmp_path, (INLINE, "paper: table-9")))


def test_every_number_is_written_once():
    entries = yaml_positions.read(PRINTED.read_text(), str(PRINTED))
    assert len({tuple(entry.items()) for entry in entries.values()}) == len(entries)
    assert all(set(entry) <= {*TEN, "average"} for entry in entries.values())
    for file in RECIPES.glob("*.yaml"):
        rows = yaml_positions.read(file.read_text(), str(file)).get("rows", {})
        assert {type(row.get("paper", "")) for row in rows.values()} <= {str}, file


def test_an_average_is_that_of_its_numbers():
    """Wherever all ten columns are printed."""
    for name, entry in yaml_positions.read(PRINTED.read_text(), str(PRINTED)).items():
        columns = [entry[task] for task in TEN if task in entry]
        if len(columns) == len(TEN):
            assert sum(columns) / len(columns) == pytest.approx(entry["average"], abs=0.051), name
