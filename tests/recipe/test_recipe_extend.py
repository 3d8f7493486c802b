"""A recipe that extends another: what it takes over, in which order it is patched, and where its mistakes are told."""

import pytest

from switchkd_cli.errors import UserError
from switchkd_cli.recipe import yaml_positions
from switchkd_cli.recipe.load import load, load_rows
from tests.support.small_recipe import write

EXTENDS = "title: child\nextends: small.yaml\n"
PLACES = "must name a recipe file in the same folder or, as ../NAME, the one above"


def child(folder, text="", name="child.yaml"):
    write(folder)
    file = folder / name
    file.write_text(EXTENDS + text)
    return file


def problems(file):
    with pytest.raises(UserError) as caught:
        load(file)
    return list(caught.value.problems)


def test_it_takes_over_all_but_title_rows_and_controls(tmp_path):
    run, base = load(child(tmp_path)), load(tmp_path / "small.yaml")
    assert (run.recipe, run.row, run.title, run.paper) == ("child", "base", "child", {})
    assert run.config == base.config.model_copy(update={"title": "child"})


def test_a_run_of_it_shares_the_stages_of_what_it_extends(tmp_path):
    run, base = load(child(tmp_path)), load(tmp_path / "small.yaml")
    assert [run.stage_key(i) for i in range(2)] == [base.stage_key(i) for i in range(2)]


def test_its_keys_take_the_place_of_the_others_then_drop_and_set_patch(tmp_path):
    text = (
        "evaluation: {benchmarks: [gqa], items: 2}\ndrop: [vsd]\nset: {evaluation.items: 6, stages.distill.lr: 0.5}\n"
    )
    config = load(child(tmp_path, text)).config
    assert (config.evaluation.benchmarks, config.evaluation.items) == (("gqa",), 6)
    assert config.stages[1].lr == 0.5
    assert [term.name for term in config.stages[1].objective] == ["ce", "align"]


def test_it_may_be_in_the_folder_above(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    file = child(tmp_path).rename(tmp_path / "sub" / "child.yaml")
    file.write_text(file.read_text().replace("small.yaml", "../small.yaml"))
    monkeypatch.chdir(file.parent)
    assert load(file.name).key == load(file).key == load(tmp_path / "small.yaml").key


def test_its_rows_patch_what_it_has_patched(tmp_path):
    text = "drop: [vsd]\nset: {seed: 4}\nrows:\n  a: {drop: [align]}\n  b: {set: {seed: 5}}\n"
    a, b = load_rows(child(tmp_path, text))
    assert ([term.name for term in a.config.stages[1].objective], a.seed, b.seed) == (["ce"], 4, 5)


def test_it_may_be_extended_itself(tmp_path):
    child(tmp_path, "set: {seed: 4}\n")
    file = tmp_path / "grandchild.yaml"
    file.write_text("title: grandchild\nextends: child.yaml\nset: {precision: bf16}\n")
    config = load(file).config
    assert (config.title, config.seed, config.precision) == ("grandchild", 4, "bf16")


def test_the_resolved_text_extends_nothing(tmp_path):
    run = load(child(tmp_path, "set: {seed: 4}\n"))
    alone = tmp_path / "elsewhere.yaml"
    alone.write_text(run.text)
    (tmp_path / "small.yaml").unlink()
    assert "extends" not in yaml_positions.read(run.text, "elsewhere.yaml")
    assert load(alone).config == run.config


def test_every_mistake_is_reported_with_the_file_and_line_that_it_was_written_in(tmp_path):
    file = child(tmp_path, "set:\n  stages.distill.lr: fast\n  stages.distil.lr: 1\ndrop: [vds]\n")
    base = write(tmp_path, ("steps: 10", "steps: ten"))
    assert problems(file) == [
        f"{file}:4: stages.distill.lr: must be a number, got 'fast'",
        f"{file}:5: set.stages.distil.lr: no such field in stages, got 'distil' (did you mean 'distill'?)",
        f"{file}:6: drop: no such term, got 'vds' (did you mean 'vsd'?)",
        f"{base}:15: stages.distill.steps: must be a whole number, got 'ten'",
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("extends: smal.yaml", "no such recipe, got 'smal.yaml' (did you mean 'small.yaml'?)"),
        ("extends: ../../small.yaml", f"{PLACES}, got '../../small.yaml'"),
        ("extends: sub/small.yaml", f"{PLACES}, got 'sub/small.yaml'"),
        ("extends: [small.yaml]", f"{PLACES}, got ['small.yaml']"),
        ("extends: ../smal.yaml", "no such recipe, got '../smal.yaml'"),
        ("extends: child.yaml", "goes round in a circle: child.yaml -> child.yaml"),
    ],
)
def test_what_it_can_not_extend_is_explained(tmp_path, line, told):
    file = child(tmp_path)
    file.write_text(f"title: child\n{line}\n")
    assert problems(file) == [f"{file}:2: extends: {told}"]


def test_a_circle_of_two_is_found(tmp_path):
    file = child(tmp_path)
    (tmp_path / "other.yaml").write_text("title: other\nextends: child.yaml\n")
    file.write_text("title: child\nextends: other.yaml\n")
    assert "goes round in a circle: child.yaml -> other.yaml -> child.yaml" in problems(file)[0]


@pytest.mark.parametrize(("line", "kind"), [("drop: vsd", "list"), ("set: [a]", "mapping")])
def test_drop_and_set_have_their_forms(tmp_path, line, kind):
    (problem,) = problems(child(tmp_path, line + "\n"))
    assert f":3: {line.split(':')[0]}: must be a {kind}" in problem


def test_a_recipe_that_extends_nothing_has_no_drop_or_set_of_its_own(tmp_path):
    file = write(tmp_path, ("title: small", "title: small\nset: {seed: 1}"))
    assert f"{file}:2: set: unknown key, got 'set'" in problems(file)[0]


def test_an_inherited_line_that_a_row_s_patch_makes_wrong_names_the_row(tmp_path):
    rows = "rows:\n  a: {}\n  odd: {set: {stages.distill.batch: 7}}\n  none: {drop: [ce, align, vsd]}\n"
    write(tmp_path, ("steps: 10", "steps: 10\n    micro_batch: 4"))
    file = tmp_path / "child.yaml"
    file.write_text(EXTENDS + rows)
    base = tmp_path / "small.yaml"
    told = [problem for problem in problems(file) if problem.startswith(f"{base}:")]
    assert [problem.partition(": ")[2].partition(":")[0] for problem in told] == [
        "stages.distill.micro_batch",
        "stages.distill.objective",
    ]
    assert [problem.endswith(f" (row {row})") for problem, row in zip(told, ("odd", "none"), strict=True)] == [True] * 2
