"""Options that commands share: declared once, grouped in the help, and with their former names."""

import ast
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import switchkd_cli
from switchkd_cli import cli
from switchkd_cli.commands import compare, train
from switchkd_cli.commands.options import DistillOptions, TrainOptions
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RunOptions

PACKAGE = Path(switchkd_cli.__file__).parent
MOST = 8


def invoke(*words):
    done = CliRunner().invoke(cli.app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("file", [PACKAGE / "cli.py", *sorted((PACKAGE / "commands").glob("*.py"))], ids=str)
def test_no_function_of_a_command_has_more_than_eight_parameters(file):
    functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        given = function.args
        assert len(given.posonlyargs + given.args + given.kwonlyargs) <= MOST, function.name


@pytest.mark.parametrize("command", ["pretrain", "distill", "ablate"])
def test_every_shared_option_is_in_the_help_under_its_title(command):
    text = invoke(command, "--help")
    for field in dataclasses.fields(RunOptions):
        assert f"--{field.name.replace('_', '-')}" in text
    titles = ("Arguments:", "Options:", "Resume or replace earlier runs:", "Check and plan:", "Several processes:")
    places = [text.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    assert text.index("--seed") < places[2] < text.index("--overwrite") < places[3] < text.index("--machine")


@pytest.mark.parametrize("name", ["--rdzv-endpoint", "--meet"])
def test_options_reach_the_command_as_one_object(monkeypatch, name):
    calls = []
    monkeypatch.setattr(train, "one_row", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(train, "run_all", lambda request: None)
    invoke("distill", "r.yaml", "a=1", "--check", "--jobs", 3, "--gpus", 8, "--nodes", 2, name, "a:1", "--seed", 4)
    ((options, jobs),) = calls
    assert (jobs, options.changes(options.overrides)) == (3, ["a=1", "check=true"])
    shared = {"seed": 4, "check": True, "gpus": 8, "nodes": 2, "rdzv_endpoint": "a:1"}
    assert options == DistillOptions(recipe="r.yaml", overrides=["a=1"], row=None, jobs=3, **shared)


def test_without_options_the_command_has_their_defaults(monkeypatch):
    calls = []
    monkeypatch.setattr(train, "one_row", lambda options, leading: calls.append((options, leading)))
    monkeypatch.setattr(train, "run_all", lambda request: None)
    invoke("pretrain")
    assert calls == [(TrainOptions(), True)]


@pytest.mark.parametrize("name", ["--figures", "--pictures"])
def test_figures_have_their_former_name_too(monkeypatch, name):
    calls = []
    monkeypatch.setattr(compare, "compare", calls.append)
    invoke("compare", "a", name, "drawn")
    assert (calls[0].names, calls[0].figures) == (["a"], Path("drawn"))


def test_an_export_has_its_options_and_a_folder_next_to_the_model(monkeypatch, tmp_path):
    calls = []
    runtimes = SimpleNamespace(export=lambda *given, **more: calls.append((given, more)) or ["wide"])
    monkeypatch.setattr(launch, "engine", {"export.runtimes": runtimes}.get)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    invoke("export", tmp_path / "model", "--to", "gguf", "--bits", 4, "--square-images")
    model = str(tmp_path / "model")
    assert calls == [((model, "gguf", Path(f"{model}-gguf-4bit"), 4), {"square_images": True})]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("playground:teacher", "--to", "vllm"), "--out: needed, the model is in no folder of yours"),
        (
            ("playground:teacher", "--to", "gguff", "--out", "o"),
            "--to: must be a runtime, got 'gguff' (did you mean 'gguf'?)",
        ),
    ],
)
def test_an_export_says_what_is_wrong(words, problem):
    done = CliRunner().invoke(cli.app, ["export", *words])
    assert done.exception.problems == (problem,)


def test_no_change_can_be_combined_with_resuming_a_run(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    words = ["a=1", "--row", "sft", "--seed", "0", "--world", "playground"]
    done = CliRunner().invoke(cli.app, ["distill", str(tmp_path), *words, "--resume"])
    each = ("a=1", "--row", "--seed", "--world")
    assert done.exception.problems == tuple(f"{name}: can't be combined with resuming a run" for name in each)
