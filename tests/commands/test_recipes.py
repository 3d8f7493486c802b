"""Every recipe of this repository: read, planned, and two steps of each row really taken, in the playground."""

import json
import re

import pytest

from switchkd_cli.commands import dry_run
from switchkd_cli.planning import preflight
from switchkd_cli.recipe import yaml_positions
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.named_files import ASSETS, find
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RunOptions
from tests.support.shipped_recipes import FILES, PACKAGED, PLAYGROUND, RECIPES, made_by_others, widened, write_few_rows

IN_PLAYGROUND = (
    "candidates.yaml",
    "equal_compute.yaml",
    "mechanisms.yaml",
    "ours.yaml",
    "quickstart.yaml",
    "real_vocabulary.yaml",
    "real_vocabulary_pictures.yaml",
    "unlike_encoder.yaml",
    "unlike_tokenizer.yaml",
)
METHODS = [file for file in FILES if file.parent.name == "methods"]
PAPER = [file for file in FILES if file.parent == RECIPES and file.name not in IN_PLAYGROUND]
PAPER += [file for file in METHODS if file.name == "losses.yaml"]
COLUMNS = ["mme", "mmbench_en_dev", "mmbench_cn_dev", "vqav2_val", "gqa", "scienceqa_img", "mmmu_val"]
COLUMNS += ["textvqa_val", "vizwiz_vqa_val", "pope"]
HEADER = ("# Reproduces: ", "# Needs: ", "# Takes: ", "# Command: ")

files = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RECIPES)))
papers = pytest.mark.parametrize("file", PAPER, ids=lambda file: file.stem)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One folder for all runs: rows that agree up to a stage share it."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def made_before(request, tmp_path, monkeypatch):
    """Stand-ins for the runs that other recipes make first: those that the header names under `Needs`, no others.

    And a few rows in place of those that a command of the header writes.
    """
    if (file := request.node.callspec.params.get("file") if hasattr(request.node, "callspec") else None) is None:
        return
    monkeypatch.chdir(tmp_path)
    models = [
        (f"{made}/{run.row}/seed0/model", run.row)
        for made in made_by_others(file)
        for run in load_rows(RECIPES / "playground" / f"{made}.yaml")
    ]
    for path, row in [*models, *((f"grown/{size}", size) for size in widened(file))]:
        model = tmp_path / "runs" / path
        model.parent.mkdir(parents=True, exist_ok=True)
        model.symlink_to(ASSETS / ("teacher" if row == "large" else "teacher-small"))
    write_few_rows(file)


def small(file):
    """Overrides that cut any recipe to two steps a stage, and to no scores."""
    rows = load_rows(file)
    first, named = rows[0].config, {stage.name: None for run in rows for stage in run.config.stages}
    stages = [
        f"stages.{stage}.{field}" for stage in named for field in ("epochs=null", "steps=2", "batch=4", "micro_batch=2")
    ]
    drawn = [name for name, data in first.data.items() if file not in PLAYGROUND or data.source == "playground"]
    data = [f"data.{name}.parameters.{field}" for name in drawn for field in ("pictures=6", "turns=2")]
    return [*stages, *data, "evaluation=null"]


def test_every_table_and_ablation_of_the_paper_has_a_recipe():
    named = {"table1_0.5b", "table1_1.5b", "align_kd", "training_scheme", "visual_encoder", "teacher_size"}
    assert named | {"loss", "components", "knee", "weights"} <= {file.stem for file in PAPER}


ABLATIONS = {
    "training-scheme": "pt-sft dpt-sft pt-dft dpt-dft",
    "components": "sft align vsd switch-kd",
    "loss": "forward-kl reverse-kl jensen-shannon skewed-kl skewed-reverse-kl bild dbild-fixed dbild-teacher-led "
    "dbild-student-led dbild-forward dbild",
    "knee": "whole window-256 fixed-8 tau-1",
    "visual-encoder": "sft sft-of-teacher switch-kd",
    "teacher-size": "t3-small t7-small t3-large t7-large",
    "weights": "switch-kd vsd align-half align-double align vsd-half vsd-double",
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_has_its_rows_by_name_and_no_two_of_them_are_one_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from anywhere
    runs = load_rows(find(name), ABLATIONS[name].split())
    assert len({run.key for run in runs}) == len(runs) == len(ABLATIONS[name].split())


def test_the_weights_are_those_that_the_rows_are_named_for():
    """lambda 1, lambda 2 of each row; a term that is left out has 0."""
    weights = {}
    for run in load_rows(find("weights")):
        terms = {term.name: term.weight for term in run.config.stages[-1].objective}
        weights[run.row] = (terms["ce"], terms.get("align", 0), terms.get("vsd", 0))
    assert weights == {
        "switch-kd": (1, 1, 1),
        "vsd": (1, 0, 1),
        "align-half": (1, 0.5, 1),
        "align-double": (1, 2, 1),
        "align": (1, 1, 0),
        "vsd-half": (1, 1, 0.5),
        "vsd-double": (1, 1, 2),
        "both-half": (1, 0.5, 0.5),
        "both-double": (1, 2, 2),
        "sft-frozen": (1, 0, 0),
        "sft": (1, 0, 0),
        "sft-compute": (1, 0, 0),
    }


@files
def test_opens_with_what_it_reproduces_needs_and_takes_and_its_command(file):
    opening = re.match(r"(?:#.*\n)+", file.read_text(encoding="utf-8"))[0]
    found = [line for line in opening.splitlines() if line.startswith(HEADER)]
    assert [line.split(":")[0] + ":" for line in found] == [head.rstrip() for head in HEADER]
    assert f"{file.relative_to(RECIPES.parent)}" in opening


def commands(file):
    """The header's calls of switchkd, as words."""
    opening = re.match(r"(?:#.*\n)+", file.read_text(encoding="utf-8"))[0]
    return [line.split("   ")[0].split()[1:] for line in re.findall(r"switchkd .*", opening)]


@files
def test_the_commands_of_its_header_run_what_they_say(file):
    """Rows and worlds that are there; the first command needs nothing that another would have to make, but what `Needs` names."""
    for number, (command, recipe, *options) in enumerate(commands(file)):
        assert file == RECIPES.parent / recipe
        options = [word for word in options if "=" not in word]  # overrides
        said = dict(zip(options[::2], options[1::2], strict=True))
        assert set(said) <= {"--row", "--rows", "--seed", "--seeds", "--world", "--jobs"}
        if command == "ablate":
            rows = said["--rows"].split(",") if "--rows" in said else None
            runs = load_rows(file, rows, world=said.get("--world"))
        else:
            runs = load_rows(file, [said.get("--row")], world=said.get("--world"), controls=command == "distill")
            runs = runs if command == "distill" else [runs[0].leading()]
        if number == 0 or "--world" in said:
            preflight.check(runs)


@papers
def test_printed_averages_are_those_of_the_printed_columns(file):
    """Each number of a row was copied right, or its average would differ."""
    printed = [run.paper for run in load_rows(file) if run.paper]
    assert printed
    for paper in printed:
        columns = [paper[name] for name in COLUMNS if name in paper]
        assert len(columns) == len(load_rows(file)[0].config.evaluation.benchmarks)
        assert sum(columns) / len(columns) == pytest.approx(paper["average"], abs=0.051)


@papers
def test_the_paper_s_settings_are_those_of_every_row(file):
    """What the supplement's Table 2 states, row by row; only rows named for their compute train longer."""
    for run in load_rows(file):
        pretrain, *finetuned = run.config.stages  # LLaVA-KD has a stage more
        assert (pretrain.lr, pretrain.batch, pretrain.epochs) == (1e-3, 256, 1.0)
        assert {(stage.lr, stage.batch) for stage in finetuned} == {(2e-5, 128)}
        assert all((stage.epochs == 1.0) != run.row.endswith("compute") for stage in finetuned)
        assert {(s.warmup, s.schedule) for s in run.config.stages} == {(0.03, "cosine")}
        assert pretrain.train == ("projector",)
        assert run.config.world is None and not run.config.stand_ins


@papers
def test_the_controls_that_the_paper_lacks_are_rows(file):
    """SFT with the encoder frozen, and trained too: at the steps of what is distilled and at its compute."""
    taught = [run.config.stages[-1] for run in load_rows(file) if not run.config.stages[-1].needs_teacher]
    whole = {stage.epochs for stage in taught if stage.train == ("vision", "projector", "language")}
    assert 1.0 in whole and max(whole) > 2
    assert 1.0 in {stage.epochs for stage in taught if stage.train == ("projector", "language")}


@papers
def test_rows_are_read_as_they_were_taught_to_be_written(file):
    """Base and instruct models of the Qwen2.5 family have no template with images: the data set brings one."""
    for run in load_rows(file):
        templates = [run.config.data[stage.data].template for stage in run.config.stages]
        assert templates[0] == "pretrain"
        assert set(templates[1:]) == {"chatml" if file.stem == "align_kd" else "qwen2_base"}
        assert {run.config.data[stage.data].max_length for stage in run.config.stages} == {2048}


@files
def test_plans_at_its_own_size_and_in_the_playground(file, root, capsys):
    for world in (None, "playground"):
        planned = load_rows(file, world=world)
        made = tuple(f"runs/{file.stem}/{run.row}/seed0/model" for run in planned)  # a teacher that is trained first
        others = [run for run in planned if run.config.teacher is None or run.config.teacher.checkpoint not in made]
        preflight.check(others)
        for run in planned:
            dry_run.show_plan(run, root, run)
            lines = [line.split() for line in capsys.readouterr().out.splitlines()]
            stages = [words[1].rstrip(",") for words in lines if words[:1] == ["stage"]]
            assert stages == [stage.name for stage in run.config.stages]


@papers
def test_the_playground_changes_neither_terms_nor_stages(file):
    for ours, theirs in zip(load_rows(file), load_rows(file, world="playground"), strict=True):
        assert (ours.row, ours.title, ours.paper) == (theirs.row, theirs.title, theirs.paper)
        for before, after in zip(ours.config.stages, theirs.config.stages, strict=True):
            kept = {"name", "data", "train", "objective", "warmup", "schedule", "weight_decay"}
            kept |= {"grad_clip", "group_by"}
            assert before.model_dump(include=kept) == after.model_dump(include=kept)


def weighted_alike(config):
    """What a run does, with 1 for each weight that is a number."""
    told = config.model_dump(exclude={"title"})
    for term in (term for stage in told["stages"] for term in stage["objective"]):
        term["weight"] = 1 if isinstance(term["weight"], int | float) else term["weight"]
    return told


RUN = [file for file in FILES if file not in METHODS or file in PAPER]


@pytest.mark.slow
@pytest.mark.parametrize("file", RUN, ids=lambda file: str(file.relative_to(RECIPES)))
def test_two_steps_of_each_row(file, root):
    """The models that ship take theirs on rows of their own kinds, all others in the playground.

    Of rows that differ only in the size of a weight, the first does. Rows of recipes/methods/ that no table of the paper
    is compared with take theirs in test_methods.py.
    """
    own = file in PLAYGROUND
    different = {}
    for run in load_rows(file, overrides=small(file), world=None if own else "playground"):
        different.setdefault(repr(weighted_alike(run.config)), run)
    for run in different.values():
        folder = launch.run_one(run, RunOptions(out=root))
        resolved = yaml_positions.read(folder.recipe.read_text(), "recipe.yaml")
        fetched = file in PAPER or file.parent.name == "families" or file in PACKAGED
        replaced = not own and (fetched or bool(made_by_others(file)))
        assert resolved["world"] == ("playground" if replaced else None)
        assert (folder.path.parents[1].name == f"{file.stem}@playground") is replaced
        assert folder.info()["status"] == "finished" and (folder.model / "config.json").is_file()
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        reused = {line["stage"] for line in lines if line.get("event") == "reused"}
        for stage in run.config.stages:
            steps = [line for line in lines if line.get("stage") == stage.name and "step" in line]
            assert len(steps) == (0 if stage.name in reused else 2)
            for line in steps:
                terms = {key.removeprefix("loss/") for key in line if key.startswith("loss/")}
                assert terms == {term.name for term in stage.objective}
                assert all(line[f"loss/{term}"] is not None for term in terms)
