"""Data sets of Hugging Face `datasets`: from folders as the library writes them, and from the hub at one commit."""

import json
import os
import pickle

import datasets
import pytest
from PIL import Image

from switchkd_cli.engine.build import open_data
from switchkd_cli.engine.cost.run_estimate import estimate_run
from switchkd_cli.engine.data import sources
from switchkd_cli.engine.data.image import open_image
from switchkd_cli.engine.data.sources import hugging_face
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import planned_machine
from switchkd_cli.recipe.load import load
from tests.support import tiny, tiny_run

PAIR = {"question": ["asked"], "answer": "said", "images": ["picture"], "placeholder": "optional"}
COMMIT = "0123456789" * 4
ROWS = [("What?", "dog", 1), ("Two?", "three", None), ("Where?", "left", 2)]


@pytest.fixture(autouse=True)
def library_s_own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def made(tmp_path):
    """Three rows, of which two have an image in the data set itself."""
    names = [tiny.picture(tmp_path, f"{seed}.png", seed) if seed else None for *_, seed in ROWS]
    rows = [
        {"asked": asked, "said": said, "picture": str(tmp_path / name) if name else None}
        for (asked, said, _), name in zip(ROWS, names, strict=True)
    ]
    kinds = {"asked": datasets.Value("string"), "said": datasets.Value("string"), "picture": datasets.Image()}
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "made")  # with images
    return datasets.load_from_disk(tmp_path / "made")


@pytest.fixture(params=["saved", "saved splits", "parquet", "jsonl"])
def folder(request, made, tmp_path):
    folder = tmp_path / "set"
    if request.param == "saved":
        made.save_to_disk(folder)
    elif request.param == "saved splits":
        datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(folder)
    else:
        folder.mkdir()
        if request.param == "parquet":
            made.to_parquet(folder / "train-00000-of-00001.parquet")
        else:
            rows = [{"asked": row["asked"], "said": row["said"], "picture": f"{i}.png"} for i, row in enumerate(made)]
            (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
            for i in range(3):
                tiny.picture(folder, f"{i}.png", i)
    return folder


def read(folder, cache, **more):
    images = {"images": str(folder)} if (folder / "train.jsonl").exists() else {}
    return hugging_face(cache, dataset=str(folder), format=PAIR, **images, **more)


def test_a_folder_is_read_whatever_wrote_it(folder, tmp_path, monkeypatch):
    rows = read(folder, tmp_path / "cache")
    assert [rows[i].exchanges for i in range(len(rows))] == [((asked, said),) for asked, said, _ in ROWS]
    assert rows.survey.faults == () and [row.id for row in map(rows.__getitem__, range(3))] == ["0", "1", "2"]
    pictured = rows[0].images[0]
    expected = "0.png" if isinstance(pictured, str) else "1.png"
    where = folder if isinstance(pictured, str) else tmp_path
    assert open_image(pictured, rows.images).tobytes() == Image.open(where / expected).convert("RGB").tobytes()
    assert pickle.loads(pickle.dumps(rows))[2] == rows[2]
    assert len(read(folder, tmp_path / "cache", limit=2)) == 2
    monkeypatch.setattr(sources, "CACHED_ROWS", 0)
    read(folder, tmp_path / "cache")
    monkeypatch.setattr("switchkd_cli.engine.data.sources.survey_rows", None)
    assert read(folder, tmp_path / "cache").survey.sizes.tolist() == rows.survey.sizes.tolist()


def test_text_rows_have_no_image(made, tmp_path):
    made.save_to_disk(tmp_path / "set")
    assert read(tmp_path / "set", tmp_path).survey.image_mask.tolist() == [True, False, True]


def test_another_split_is_read_or_refused(made, tmp_path):
    datasets.DatasetDict(train=made, test=made.select([1])).save_to_disk(tmp_path / "set")
    assert read(tmp_path / "set", tmp_path, split="test")[0].exchanges == (("Two?", "three"),)
    with pytest.raises(UserError, match=r"set: can't be opened as a data set: no split 'tset' \(known: train, test\)"):
        read(tmp_path / "set", tmp_path, split="tset")
    datasets.Dataset.from_list([{"asked": "A?", "said": "b"}], split="test").save_to_disk(tmp_path / "one")
    assert len(read(tmp_path / "one", tmp_path, split="test")) == 1
    with pytest.raises(UserError, match=r"no split 'train' \(known: test\)"):
        read(tmp_path / "one", tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: can't be opened as a data set"):
        read(tmp_path / "none", tmp_path)


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    """A hub with one data set: what `load_dataset` is called with."""
    (tmp_path / "hub").mkdir()
    made.to_parquet(tmp_path / "hub" / "train.parquet")
    calls, genuine = [], datasets.load_dataset

    def from_hub(path, **arguments):
        calls.append((path, arguments.pop("revision"), arguments.get("streaming", False)))
        return genuine(str(tmp_path / "hub"), **arguments)

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    return calls


def test_a_data_set_of_the_hub_is_read_at_its_commit(hub, tmp_path):
    rows = hugging_face(tmp_path / "cache", dataset="org/set", format=PAIR, revision=COMMIT)
    assert rows[1].exchanges == (("Two?", "three"),) and hub == [("org/set", COMMIT, False)]


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:7]])
def test_without_its_commit_it_is_refused(hub, tmp_path, revision):
    with pytest.raises(
        UserError, match=f"org/set: no such folder; .* needs its `revision`, a commit, got {revision!r}"
    ):
        hugging_face(tmp_path, dataset="org/set", format=PAIR, revision=revision)
    assert hub == []


def test_a_stream_gives_its_first_rows_and_is_read_once(hub, tmp_path):
    for _ in range(2):
        rows = hugging_face(tmp_path, dataset="org/set", format=PAIR, revision=COMMIT, streaming=True, limit=2)
        assert [rows[i].exchanges[0][1] for i in range(len(rows))] == ["dog", "three"]
        assert open_image(rows[0].images[0], None).tobytes() == Image.open(tmp_path / "1.png").convert("RGB").tobytes()
    assert hub == [("org/set", COMMIT, True)]
    assert len(os.listdir(tmp_path / "indexes" / "streamed")) == 1


def test_a_stream_that_could_not_be_resumed_is_refused(hub, tmp_path):
    with pytest.raises(UserError, match="org/set: streaming needs a limit: a stream has no random order"):
        hugging_face(tmp_path, dataset="org/set", format=PAIR, revision=COMMIT, streaming=True)
    assert hub == []


def test_a_folder_is_not_streamed(hub, made, tmp_path):
    made.save_to_disk(tmp_path / "set")
    assert len(read(tmp_path / "set", tmp_path, streaming=True, limit=2)) == 2
    made.select([0]).save_to_disk(tmp_path / "set")
    assert len(read(tmp_path / "set", tmp_path, streaming=True, limit=2)) == 1 and hub == []


def recipe_of(tmp_path, **parameters):
    data = {"rows": {"source": "hugging_face", "parameters": {"format": PAIR, **parameters}}}
    return load(tiny_run.write(tmp_path, teacher=False, data=data))


def test_a_folder_s_files_are_part_of_the_key(made, tmp_path):
    made.save_to_disk(tmp_path / "set")
    run = recipe_of(tmp_path, dataset=str(tmp_path / "set"))
    assert run.inputs["data.rows.dataset"] and run.inputs["data.rows.images"] is None
    assert len(open_data(run.config.data["rows"], tiny.model().inputs, tmp_path)) == 3
    before = run.key
    assert recipe_of(tmp_path, dataset=str(tmp_path / "set")).key == before
    made.select([0, 1]).save_to_disk(tmp_path / "set")
    assert recipe_of(tmp_path, dataset=str(tmp_path / "set")).key != before and run.changed() == ["data.rows.dataset"]


def test_a_plan_fetches_nothing(hub, tmp_path):
    run = recipe_of(tmp_path, dataset="org/set", revision=COMMIT)
    plan = estimate_run(run, planned_machine(None, "fp32"), tmp_path / "runs", {})
    assert plan.stages[0].rows is None and "org/set" in [download.name for download in plan.downloads] and hub == []
