"""The patch language on plain data."""

import pytest

from switchkd_cli.recipe import patches, yaml_positions


def data():
    return {
        "title": "t",
        "student": {"vision": "v"},
        "stages": [
            {"name": "a", "lr": 1, "train": ["x", "y"], "objective": [{"loss": "ce"}]},
            {"name": "b", "objective": [{"loss": "ce"}, {"name": "vsd", "loss": "dbild", "weight": 1.0}]},
        ],
    }


def test_paths_walk_lists_by_name_and_by_number():
    assert patches.apply(data(), {"stages.a.lr": 2})[0]["stages"][0]["lr"] == 2
    assert patches.apply(data(), {"stages.0.lr": 2})[0]["stages"][0]["lr"] == 2
    assert patches.apply(data(), {"stages.b.objective.vsd.weight": 0})[0]["stages"][1]["objective"][1]["weight"] == 0
    assert patches.apply(data(), {"stages.b.objective.ce.weight": 3})[0]["stages"][1]["objective"][0]["weight"] == 3
    assert patches.apply(data(), {"stages.a.train.1": "z"})[0]["stages"][0]["train"] == ["x", "z"]


def test_a_number_of_thousands_of_digits_is_no_place_in_a_list():
    (misfit,) = patches.apply(data(), {f"stages.{'9' * 5000}.lr": 2})[1].values()
    assert misfit.startswith("no such field in stages, got '999")


def test_a_new_key_may_be_set_in_a_mapping():
    assert patches.apply(data(), {"student.language": "l"})[0]["student"] == {"vision": "v", "language": "l"}


def test_the_input_is_left_alone():
    before = data()
    patches.apply(before, {"stages.a.lr": 2})
    patches.drop(before, ["ce", "vsd"])
    assert before == data()


def test_drop_takes_the_terms_out_of_every_stage():
    dropped, _ = patches.drop(data(), ["ce"])
    assert [[yaml_positions.item_name(t) for t in s["objective"]] for s in dropped["stages"]] == [[], ["vsd"]]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stagez.a.lr", "no such field, got 'stagez' (did you mean 'stages'?)"),
        ("stages.c.lr", "no such field in stages, got 'c' (known: a, b)"),
        ("stages.2.lr", "no such field in stages, got '2' (known: a, b)"),
        ("stages.a.train.5", "no such field in stages.a.train, got '5'"),
        ("title.x", "title is a value, it has no 'x'"),
        ("stages.b.objective.vds.weight", "no such field in stages.b.objective, got 'vds' (did you mean 'vsd'?)"),
    ],
)
def test_a_path_that_leads_nowhere_is_explained(path, message):
    assert patches.apply(data(), {path: 1}) == (data(), {path: message})


def test_places_follow_the_values():
    read = yaml_positions.read("stages:\n- name: a\n  objective:\n  - {loss: ce}\n  - {loss: kl}\n", "f")
    dropped, _ = patches.drop(read, ["ce"])
    assert yaml_positions.where(dropped, ("stages", 0, "objective", 0, "loss")) == "f:5"
    assert yaml_positions.where(patches.apply(dropped, {"stages.a.lr": 1})[0], ("stages", 0, "lr")) == "override"
    assert yaml_positions.where(dropped, ("stages", 0, "missing")) == "f:2"


def test_yaml_is_read_by_its_newer_rules():
    read = yaml_positions.read(
        "on: yes\nlr: 1e-3\nsmall: -2.5E+3\nid: 012\nnone: ~\nday: 2024-01-01\nbig: 1_000\n", "f"
    )
    assert read == {
        "on": "yes",
        "lr": 1e-3,
        "small": -2500.0,
        "id": "012",
        "none": None,
        "day": "2024-01-01",
        "big": "1_000",
    }


@pytest.mark.parametrize(
    "value", ["1e-3", "true", "on", "012", "", "~", "2024-01-01", "a: b", "[x]", "é中", 1e-7, 0.1, 3, None, True]
)
def test_text_that_is_written_reads_back(value):
    assert yaml_positions.read(yaml_positions.write({"k": [value], "on": {"n": value}}), "f") == {
        "k": [value],
        "on": {"n": value},
    }
