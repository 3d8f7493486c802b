"""Pairs of images that differ in one cause, swapped relations, captions: recomputed from the scenes by the tests' own rules."""

import json
import random
import re
from collections import Counter
from itertools import count, islice

import pytest

from scripts.playground_rows.write import write
from switchkd_cli.playground.benchmark_sets import CAUSES, benchmark_items, one_cause, swapped
from switchkd_cli.playground.text.words import caption, captions
from switchkd_cli.playground.training_rows import write_rows
from switchkd_cli.playground.world import (
    CELL,
    NAMES,
    PLACES,
    SPLITS,
    belongs,
    draw,
    drawn,
    held_out_hand,
    is_unseen,
    scenes,
)


def pairs(make, split: str, number: int) -> list:
    """The first `number` pairs, of ((scene, question), (scene, question))."""
    rng = random.Random(0)
    found = (pair for scene in scenes(split, 10**6, 5) if (pair := make(scene, rng)))
    return list(islice(found, number))


def causes(split: str, number: int) -> list:
    turn = count()
    return pairs(lambda scene, rng: one_cause(scene, CAUSES[next(turn) % 4], rng), split, number)


def shown(scene) -> dict:
    """What is where: the background under None, and name and hand by cell."""
    return {None: scene.background} | {(item.row, item.column): (item.name, item.hand) for item in scene.items}


def true_answer(scene, question) -> str:
    """The answer, looked up in the scene."""
    at = {PLACES[item.row, item.column]: item.name for item in scene.items}
    if question.kind == "color":
        return scene.background
    if question.kind == "number":
        return next(name for name in at.values() if name.isdigit())
    if question.kind == "name":
        return at[re.fullmatch(r"What is at the (.+)\?", question.text)[1]]
    named = re.fullmatch(r"Where is the (.+)\?", question.text)[1]
    (place,) = (place for place, name in at.items() if name == named)
    return place


def is_true(scene, sentence: str) -> bool:
    first, word, second = re.fullmatch(
        r"the (.+) is (?:to the )?(left|right|above|below)(?: of)? the (.+)", sentence
    ).groups()
    ((row, column),) = ((i.row, i.column) for i in scene.items if i.name == first)
    ((other_row, other_column),) = ((i.row, i.column) for i in scene.items if i.name == second)
    return {
        "left": column < other_column,
        "right": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[word]


@pytest.mark.parametrize("split", ["test", "hard", "unseen"])
def test_a_pair_differs_in_the_cause_that_is_asked_for_and_in_nothing_else(split):
    for (one, question), (other, again) in causes(split, 40):
        assert (question.text, question.options) == (again.text, again.options)
        assert {question.answer, again.answer} == {"A", "B"}
        before, after = shown(one), shown(other)
        differing = {at for at in before.keys() | after.keys() if before.get(at) != after.get(at)}
        assert (differing == {None}) == (question.kind == "color")
        assert len(differing) == (2 if question.kind == "place" else 1)
        if question.kind == "place":
            assert Counter(before.values()) == Counter(after.values())
        for scene, asked in ((one, question), (other, again)):
            assert asked.options["AB".index(asked.answer)] == true_answer(scene, asked)


@pytest.mark.parametrize("make", [causes, lambda split, number: pairs(swapped, split, number)])
def test_what_does_not_differ_is_drawn_alike(make):
    for (one, _), (other, _) in make("test", 24):
        if one.background != other.background:
            continue
        same = {at for at, what in shown(one).items() if shown(other).get(at) == what} - {None}
        for row, column in same:
            box = (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)
            assert draw(one).crop(box).tobytes() == draw(other).crop(box).tobytes()
        assert draw(one).tobytes() != draw(other).tobytes()


def test_things_that_swapped_places_make_the_other_sentence_true():
    sides = Counter()
    for (one, question), (other, again) in pairs(swapped, "test", 60):
        assert question.text == again.text == "Which is true?" and question.options == again.options
        first, second = question.options
        assert first != second and sorted(first.split()) == sorted(second.split())
        assert Counter(thing.name for thing in one.things) == Counter(thing.name for thing in other.things)
        for scene, asked in ((one, question), (other, again)):
            right = asked.options["AB".index(asked.answer)]
            assert [sentence for sentence in asked.options if is_true(scene, sentence)] == [right]
        sides[question.kind] += 1
    assert set(sides) == {"left", "right", "above", "below"}


@pytest.mark.parametrize("make", [causes, lambda split, number: pairs(swapped, split, number)])
def test_partners_are_of_their_split(make):
    """By composition, by hand, and by whether two of their concepts are never together elsewhere."""
    compositions = {}
    for split in SPLITS:
        partners = [other for _, (other, _) in make(split, 24)]
        compositions[split] = {scene.composition for scene in partners}
        for scene in partners:
            assert belongs(scene)
            assert all((item.hand == held_out_hand(item.name)) == (split == "hard") for item in scene.items)
            names = [thing.name for thing in scene.things]
            unseen = any(is_unseen(frozenset((a, b))) for a in names for b in names if a != b)
            assert unseen == (split == "unseen")
    assert sum(map(len, compositions.values())) == len(set().union(*compositions.values()))


def test_a_moved_thing_does_not_hide_a_composition_of_another_split():
    for (_, question), (other, _) in causes("test", 40):
        if question.kind == "place":
            things = tuple(sorted(other.things, key=lambda thing: (thing.row, thing.column)))
            assert type(other)(other.id, "test", other.background, things, other.digit).composition == other.composition


def test_the_other_thing_is_drawn_by_zipfs_law():
    """As often as things are in scenes; evenly drawn, one in twenty would be among the thirty commonest."""
    common, rng = {*NAMES[:30]}, random.Random(1)
    changed = [pair for pair in causes("train", 400) if pair[0][1].kind == "name"]
    new = [true_answer(*asked) in common for _, asked in changed]
    expected = [drawn(NAMES, rng, without=one.concepts) in common for (one, _), _ in changed for _ in range(20)]
    assert len(new) > 90 and abs(sum(new) / len(new) - sum(expected) / len(expected)) < 0.15


@pytest.mark.parametrize("task", ["mmvp", "swap"])
def test_the_first_letter_is_as_often_right_on_the_first_image(task):
    items = list(benchmark_items(task, split="test", items=200, seed=1))
    assert [item.number for item in items] == list(range(200))
    assert all(
        {one.question.answer, two.question.answer} == {"A", "B"}
        for one, two in zip(items[::2], items[1::2], strict=True)
    )
    assert 35 < sum(item.question.answer == "A" for item in items[::2]) < 65


def test_each_cause_is_asked_for_equally_often():
    items = benchmark_items("mmvp", split="test", items=80, seed=1)
    assert Counter(item.question.kind for item in items) == dict.fromkeys(CAUSES, 20)


def test_a_caption_of_training_is_one_of_the_references():
    items = list(benchmark_items("captions", split="test", items=30, seed=1))
    for item, scene in zip(items, scenes("test", 30, 1), strict=True):
        assert item.question.answers == captions(scene) and len(set(item.question.answers)) == 2
        written = {caption(scene, random.Random(seed)) for seed in range(20)}
        assert written == set(item.question.answers)
        assert all(part in text for text in written for part in (scene.background, *(t.name for t in scene.things)))


def test_prompts_and_answers_have_no_word_that_training_lacks(tmp_path):
    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+|[^\w\s]", text)) - {*NAMES}

    known = set()
    many = {"pictures": 150, "turns": 20, "seed": 1}
    taught = write_rows(tmp_path / "instructions", kind="instructions", split="train", **many)
    for file in (taught, write(tmp_path / "drills", kind="drills", **many)):
        rows = json.loads(file.read_text(encoding="utf-8"))
        known |= {word for row in rows for turn in row["conversations"] for word in words(turn["value"])}
    for task in ("mmvp", "swap", "captions"):
        for item in benchmark_items(task, split="test", items=80, seed=1):
            for text in (item.question.text, *item.question.options, *item.question.answers):
                assert words(text) <= known
