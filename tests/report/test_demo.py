"""`compare --demo`: one page of stored answers; what it holds, and what it does in a browser."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from switchkd_cli import cli
from switchkd_cli.errors import UserError
from switchkd_cli.report.formats.demo import MOST, SIDE, write_demo
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.runs.run_folder import RunFolder
from tests.commands import test_compare as runs

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def page(root: Path, *folders: RunFolder, teacher: Path | None = None, wide: int = 40, **base) -> Path:
    """The page of these runs; questions of GQA have an image, those of VQAv2 one that is not here, POPE's none."""
    for folder in (*folders, *([RunFolder(teacher)] if teacher else [])):
        for task, image in (("gqa", "a"), ("vqav2_val", "lost"), ("pope", None)):
            runs.write(folder, task, [line | {"image": image} for line in runs.stored(folder, task)])
    results = {"teacher": json.loads((teacher / "results.json").read_text())} if teacher else None
    file = root.parent / "demo.html"
    answers = RunFolder(teacher or root).answers
    write_demo(file, [read(folder) for folder in folders], results, answers, opened(wide), **base)
    return file


def opened(wide: int):
    return lambda questions: {"a": [Image.new("RGBA", (wide, 20), "red"), Image.new("RGB", (8, 8))]}


def content(file: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', file.read_text(), re.DOTALL)[1])


def test_the_reference_row_stands_before_the_others_and_the_teacher_before_it(root):
    teacher = runs.finished(root.parent / "evaluations", "vsd").path
    folders = [runs.finished(root, row) for row in ("switch-kd", "vsd", "sft")]
    names = ["Switch-KD (seed 0)", "VSD only (seed 0)", "SFT (seed 0)"]
    assert content(page(root, *folders, teacher=teacher))["names"] == ["teacher", names[2], *names[:2]]
    assert content(page(root, *folders, against="vsd"))["names"] == [names[1], names[0], names[2]]


def test_each_question_has_every_row_s_stored_answer_and_score(root):
    folders = [runs.finished(root, row) for row in ("sft", "switch-kd")]
    examples = content(page(root, *folders))["examples"]
    shown = [of["lines"] for of in examples if of["benchmark"] == "GQA"]
    assert shown == [list(pair) for pair in zip(*(runs.stored(of, "gqa") for of in folders), strict=True)]
    assert {of["benchmark"] for of in examples} == {"GQA", "VQAv2", "POPE"}


def test_of_many_questions_every_nth_of_each_benchmark_is_shown_and_the_page_says_so(root, monkeypatch):
    monkeypatch.setattr("switchkd_cli.report.formats.demo.MOST", 30)
    folder = runs.finished(root, "sft")
    file = page(root, folder)
    assert "30 of 120 questions, one in 4 of each benchmark" in file.read_text()
    numbers = [of["lines"][0]["doc_id"] for of in content(file)["examples"] if of["benchmark"] == "GQA"]
    assert numbers == list(range(0, runs.ITEMS, 4))
    monkeypatch.setattr("switchkd_cli.report.formats.demo.MOST", MOST)
    assert "120 of 120 questions; " in page(root, folder).read_text()


def test_of_a_row_s_seeds_the_first_is_shown_and_named(root):
    folders = [runs.finished(root, row, seed) for row in ("sft", "switch-kd") for seed in (1, 2)]
    assert content(page(root, *folders))["names"] == ["SFT (seed 1)", "Switch-KD (seed 1)"]


def test_the_page_needs_no_other_file_and_images_are_small(root):
    text = page(root, runs.finished(root, "sft"), wide=4000).read_text()
    assert not re.search(
        r"https?://|@import|src=", text.split("<body>")[0] + text.split("<main")[1].split("<script")[0]
    )
    uris = content(root.parent / "demo.html")["images"]["a"]
    assert all(uri.startswith("data:image/webp;base64,") for uri in uris)
    images = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]
    assert [image.size for image in images] == [(SIDE, 2), (8, 8)]


def test_rows_with_other_questions_are_refused(root):
    with pytest.raises(UserError, match="benchmarks"):
        page(root, runs.finished(root, "sft"), runs.finished(root, "vsd", tasks=("gqa", "vqav2_val", "pope", "mme")))


@pytest.mark.parametrize(("file", "said"), [("absent/demo.html", "--demo: absent is no folder"), (".", "is a folder")])
def test_a_file_that_can_t_be_written_is_refused_before_anything_is_compared(
    root, monkeypatch, capsys, file: str, said: str
):
    monkeypatch.chdir(root.parent)
    monkeypatch.setattr("sys.argv", ["switchkd", "compare", str(runs.finished(root, "sft").path), "--demo", file])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert said in told.err and not told.out


@pytest.fixture
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.slow
def test_in_a_browser_keys_and_filters_choose_the_example(root, browser):
    folders = [runs.finished(root, row) for row in ("sft", "switch-kd")]
    differ = sum(a["answer"] != b["answer"] for a, b in zip(*(runs.stored(f, "gqa") for f in folders), strict=True))
    for folder in folders:
        first, *others = runs.stored(folder, "gqa")
        runs.write(folder, "gqa", [first | {"prompt": HOSTILE}, *others])
    opened, requests = browser.new_page(), []
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(page(root, *folders).as_uri())

    def place() -> str:
        return opened.inner_text("#place")

    assert place() == "1 of 120" and opened.is_disabled("#previous")
    opened.keyboard.press("ArrowRight")
    assert place() == "2 of 120" and "image 1 of vqav2_val" in opened.inner_text("#question")
    assert "not on this machine" in opened.inner_text("#images")
    opened.click("#next")
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowLeft")
    assert place() == "1 of 120"

    opened.select_option("#benchmark", "GQA")
    assert place() == f"1 of {runs.ITEMS}" and opened.inner_text("#question") == HOSTILE
    widths = opened.eval_on_selector_all("#images img", "(all) => all.map((image) => image.naturalWidth)")
    assert widths == [40, 8]
    cards = opened.eval_on_selector_all(".answers article", "(all) => all.map((card) => card.innerText)")
    stored = [runs.stored(folder, "gqa")[0] for folder in folders]
    assert [card.split("\n")[0] for card in cards] == ["SFT (seed 0)", "Switch-KD (seed 0)"]
    for card, line in zip(cards, stored, strict=True):
        assert line["answer"] in card and ("✓ right" if line["score"] else "✗ wrong") in card

    opened.check("#differ")
    assert place() == f"1 of {differ}" and 0 < differ < runs.ITEMS
    opened.select_option("#benchmark", "POPE")
    assert "without an image" in opened.inner_text("#images")
    assert opened.title().startswith("Answers") and [url for url in requests if not url.startswith("data:")][1:] == []
