"""`--check`: the first step logs the distance of the chunked and the dense objective, and stops if they differ."""

import pytest

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training import chunked
from switchkd_cli.engine.training.loop import train
from switchkd_cli.errors import CRASH, UserError
from switchkd_cli.recipe.load import load
from tests.support import small_recipe, tiny
from tests.training.test_training import stage


def logged(folder, *, check=True, precision="fp32", **changes):
    student = tiny.model(seed=1)
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))
    lines = []
    data = tiny.conversations(student, folder)
    train(stage(**changes), paths, data, seed=0, precision=precision, log=lines.append, check=check)
    return lines


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_step_is_compared_and_nothing_else_changes(tmp_path, precision, monkeypatch):
    monkeypatch.setattr("switchkd_cli.engine.lm_head.LOGITS", 5 * 767)
    checked, plain = (logged(tmp_path, check=check, precision=precision) for check in (True, False))
    (event,) = [line for line in checked if line.get("event") == "check"]
    assert 0 <= event["loss"] <= 1e-12 and 0 <= event["gradient"] <= 1e-12  # in float64, whatever the run's precision
    assert not [line for line in plain if line.get("event") == "check"]
    one, other = ([line["loss"] for line in lines if "step" in line] for lines in (checked, plain))
    assert one == other and len(one) == 3


def test_an_objective_that_is_another_in_chunks_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("switchkd_cli.engine.lm_head.LOGITS", 5 * 767)
    monkeypatch.setattr(chunked, "_add_product", lambda to, left, right: to.addmm_(left, right, alpha=1.001))
    with pytest.raises(UserError, match="check/gradient is 0.001") as refused:
        logged(tmp_path)
    assert refused.value.code == CRASH


def test_a_checked_run_is_the_same_run(tmp_path):
    recipe = small_recipe.write(tmp_path)
    assert load(recipe, overrides=["check=true"]).key == load(recipe).key


def test_the_command_line_asks_for_it(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from switchkd_cli import cli
    from switchkd_cli.commands import train

    asked = []
    monkeypatch.setattr(train, "load_rows", lambda path, row, overrides, *_, **more: asked.append(overrides) or [])
    monkeypatch.setattr(train, "show_plans", lambda *_: None)
    given = [str(small_recipe.write(tmp_path)), "stages.distill.steps=3", "--check", "--dry-run"]
    found = CliRunner().invoke(cli.app, ["distill", *given])
    assert found.exit_code == 0, found.output
    assert asked == [["stages.distill.steps=3", "check=true"]]
