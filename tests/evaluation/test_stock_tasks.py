"""Any task of lmms-eval as a benchmark: its own metric, its items' scores, and no answer sent anywhere."""

import shutil
import socket
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

import datasets

from switchkd_cli.benchmarks import BENCHMARKS
from switchkd_cli.engine.data.look import look
from switchkd_cli.engine.data.sources import llava_json
from switchkd_cli.engine.evaluation.lmms_harness import TASKS, task_manager
from switchkd_cli.engine.evaluation.lmms_model import Item, LmmsModel
from switchkd_cli.engine.evaluation.score_model import check, evaluation_sets, score_request
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_json
from switchkd_cli.recipe.schema import Evaluation
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.report.stats import significance
from switchkd_cli.report.stats.stored_answers import read_answers, units
from switchkd_cli.report.tables.comparison import comparison
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import stock_sets, tiny
from tests.support.stock_sets import COUNT, SETS

SINGLE = [task for task in SETS if task != "naturalbench"]  # whose metric is of groups of four


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    stock_sets.write(folder, *SETS)
    return folder


@pytest.fixture(autouse=True)
def offline(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))


class Says(LmmsModel):
    """Answers as a function of the item's number does."""

    def __init__(self, say) -> None:
        super().__init__()
        self.say = say

    def answer(self, items: list[Item]) -> list[str]:
        return [self.say(item.doc_id) for item in items]


def asked(say, folder: Path, *tasks: str, **changes) -> dict:
    question = Evaluation(world="hub", benchmarks=tasks, **changes)
    return score_request(Says(say), question, folder)["scores"]


@pytest.mark.parametrize("task", SINGLE)
def test_a_stock_task_runs_offline_and_its_items_give_its_metric(task: str, tmp_path: Path) -> None:
    right = SETS[task].right
    for share, say in ((1.0, right), (0.5, lambda i: right(i) if i % 2 else "E")):
        entry = asked(say, tmp_path / str(share), task)[task]
        lines = read_answers(tmp_path / str(share) / "answers", task)
        assert len(lines) == entry["items"] == COUNT
        assert units(task, lines).score == pytest.approx(entry["score"], abs=1e-4)
        if share == 1.0:
            assert entry["score"] == pytest.approx(SETS[task].full)
            assert len({line["score"] for line in lines}) == 1
        else:
            assert 0 < entry["score"] < SETS[task].full
        assert entry["higher_is_better"] is True and entry["metric"]
        assert len({line["image"] for line in lines}) == COUNT


def test_a_mean_over_kinds_names_the_kind_of_each_item(tmp_path: Path) -> None:
    entry = asked(lambda i: SETS["mmstar"].right(i) if i < 3 else "E", tmp_path, "mmstar")["mmstar"]
    assert entry["metric"] == "average" and entry["score"] == pytest.approx(0.5)  # not 3 of 4
    lines = read_answers(tmp_path / "answers", "mmstar")
    assert [line["category"] for line in lines] == ["recognition"] * 3 + ["geometry"]
    assert units("mmstar", lines).score == pytest.approx(0.5)


@pytest.mark.slow
def test_a_metric_of_groups_gives_its_items_no_score(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    stock_sets.write(tmp_path, "naturalbench", count=7600)  # it counts them
    entry = asked(lambda i: SETS["naturalbench"].right(i % COUNT), tmp_path, "naturalbench")["naturalbench"]
    assert entry["metric"] == "naturalbench_G_ACC" and entry["score"] == 1.0
    assert {"naturalbench_Q_ACC", "naturalbench_I_ACC"} <= set(entry["others"])
    assert {line["score"] for line in read_answers(tmp_path / "answers", "naturalbench")} == {None}


def test_a_task_that_asks_a_judge_ends_in_an_error_and_not_in_a_score(tmp_path: Path, monkeypatch) -> None:
    """Its code catches every Exception and tries again; a score of 0 would come out."""
    reached: list = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: reached.append(address))
    own = own_tasks(tmp_path / "mine", "1.0", before="import requests\n    requests.post('http://127.0.0.1:9/judge')")
    with pytest.raises(UserError, match=r"tried to reach \S*127\.0\.0\.1") as error:
        asked(lambda i: "a", tmp_path / "run", "mine", tasks_path=str(own))
    assert "sent nowhere" in error.value.hint and not reached


def test_rows_that_stand_in_a_benchmark_are_found_and_a_benchmark_that_is_not_here_is_named(tmp_path: Path) -> None:
    """With or without what the task writes below the question."""
    sets, absent = evaluation_sets(Evaluation(world="hub", benchmarks=("chartqa", "mme")), tmp_path)
    assert (list(sets), absent) == (["chartqa"], ["mme"])
    (tmp_path / "1.png").write_bytes(stock_sets.image(1))
    asked = ["How many? (1)", "How many? (1)\nAnswer the question with a single word.", "How many? (2)", "How many?"]
    write_json(tmp_path / "rows.json", [tiny.row(str(i), "1.png", (text, "12")) for i, text in enumerate(asked)])
    rows = llava_json(tmp_path, file=str(tmp_path / "rows.json"), images=str(tmp_path))
    assert list(look(rows, sets))[-1] == "rows that also stand in chartqa, picture and question: 2"


OWN = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function own.visual
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
process_results: !function own.results
metric_list:
  - {{metric: mistakes, aggregation: {aggregation}, higher_is_better: false}}
"""
CODE = """
def most(items):
    return max(items)

def visual(doc):
    return []

def results(doc, said):
    try:
        {before}
    except Exception:
        return {{"mistakes": 0.0}}
    return {{"mistakes": {score}}}
"""


def own_tasks(folder: Path, score: str, before: str = "pass", aggregation: str = "mean") -> Path:
    folder.mkdir(parents=True)
    rows = [f'{{"question": "What is {i}?", "answer": "{i}"}}' for i in range(COUNT)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "mine.yaml").write_text(OWN.format(name=folder.name, rows=folder / "rows.jsonl", aggregation=aggregation))
    before = before.replace("\n    ", "\n        ")
    (folder / "own.py").write_text(CODE.format(score=score, before=before))
    return folder


def test_a_folder_of_ones_own_tasks_whose_metric_counts_mistakes(tmp_path: Path) -> None:
    own = own_tasks(tmp_path / "mine", "3.0 * (said[0] != doc['answer'])")
    entry = asked(lambda i: "0", tmp_path / "run", "mine", tasks_path=str(own))["mine"]
    assert (entry["metric"], entry["score"], entry["higher_is_better"]) == ("mistakes", 2.25, False)
    assert [line["score"] for line in read_answers(tmp_path / "run" / "answers", "mine")] == [0.0, 3.0, 3.0, 3.0]


def test_what_cant_be_asked_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    """The code of all tasks is imported first, so that a missing package is named before a model is trained."""
    own = own_tasks(tmp_path / "mine", "1.0")
    (own / "own.py").write_text("import a_package_that_is_missing\n")
    with pytest.raises(UserError) as error:
        check(Evaluation(world="hub", benchmarks=("ai2d", "mine"), tasks_path=str(own)))
    assert error.value.problems == ("mine: a_package_that_is_missing is not installed",)


def test_compare_pairs_stock_tasks_item_by_item(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 199)
    own_tasks(tmp_path / "own" / "mine", "3.0 * (said[0] != doc['answer'])")
    own_tasks(
        tmp_path / "own" / "worst", "3.0 * (said[0] != doc['answer']) + int(said[0])", aggregation="!function own.most"
    )
    tasks = ("ai2d", "mmstar", "mine", "pope_random", "worst")
    sayings = {"all": lambda i: str(i), "half": lambda i: "0"}
    runs = []
    for model, say in sayings.items():
        folder = RunFolder(tmp_path / model)
        question = Evaluation(world="hub", benchmarks=tasks, tasks_path=str(tmp_path / "own"))
        results = score_request(Says(say), question, folder.path)
        write_json(folder.results, {"model": model, **results})
        runs.append(read(folder))
    report = comparison(runs, None, against="all")
    table = next(table for table in report.tables if table.title.startswith("half minus all"))
    lines = {line.name: dict(zip(table.columns[1:], line.cells, strict=True)) for line in table.lines}
    mine = lines["mine"]
    assert str(mine["difference"]) == "+2.2500"  # no average to be left out of
    assert mine["95 % items"].low == 0.75 and mine["95 % items"].high == 3.0
    assert mine["p"].value == 0.25  # of 8 exchanges that differ, two lie as far out
    notes = "\n".join(report.notes)
    assert "worst: mistakes is no mean over items" in notes and lines["worst"]["p"] is None
    assert "lower is better, so a negative difference is a gain: mine" in notes
    assert "Avg: of the paper's ten benchmarks, or without them" in notes
    assert lines["mine"]["p, Holm"].value > 0.25  # corrected for all of them


@pytest.mark.parametrize(
    "names", [("mine", "pope", "pope_adv"), ("pope_adv", "pope", "mine"), ("pope_pop", "pope_adv")]
)
def test_a_name_means_one_file_in_whatever_order_it_is_asked(tmp_path: Path, names: tuple[str, ...]) -> None:
    """The ten keep their protocol; any other name is the user's file before lmms-eval's."""
    own = tmp_path / "own"
    own.mkdir()
    for file in (TASKS / "pope").glob("pope*.yaml"):
        shutil.copy(file, own)
    (own / "mine.yaml").write_text((own / "pope.yaml").read_text().replace('task: "pope"', "task: mine"))
    index = task_manager([BENCHMARKS[name] for name in names], str(own)).task_index
    assert {name: Path(index[name]["yaml_path"]).parent for name in names} == {
        name: TASKS / "pope" if name == "pope" else own for name in names
    }
