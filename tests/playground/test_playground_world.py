"""The embedded world: what it promises about scenes, questions, rows, tokenizer and the shipped assets."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import combinations

import pytest
from PIL import Image

from scripts.playground_rows.drills import choose, drill
from scripts.playground_rows.lists import list_row
from scripts.playground_rows.write import text_row
from switchkd_cli.errors import UserError
from switchkd_cli.playground import training_rows
from switchkd_cli.playground.text.facts import STATEMENTS
from switchkd_cli.playground.text.questions import LETTERS, ask, ask_pair, prompt, suits
from switchkd_cli.playground.text.words import STYLES, SYMBOLS, caption, say
from switchkd_cli.playground.training_rows import KINDS, write_rows
from switchkd_cli.playground.world import (
    CATEGORIES,
    COLOURS,
    CONCEPTS,
    HANDS,
    PLACES,
    SIZE,
    SPLITS,
    Scene,
    draw,
    drawn,
    held_out_hand,
    is_unseen,
    scenes,
)
from switchkd_cli.recipe.load import load
from tests.support.small_recipe import write
from tests.support.true_answers import at, holds, named_in, next_to, place_in, true_answer

ASSETS = files("switchkd_cli.playground") / "assets"
SOME = list(scenes("train", 1500, 7))


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(ASSETS / "tokenizer"))


def asked(style: str, count: int = len(SOME)) -> list[tuple[Scene, object]]:
    rng = random.Random(style)
    return [(scene, ask(scene, style, rng)) for scene in SOME[:count] if suits(scene, style)]


# Scenes and splits


def test_the_same_seed_gives_the_same_scenes_and_pictures():
    first, second = (list(scenes("validation", 20, 3)) for _ in range(2))
    assert first == second
    assert [draw(scene).tobytes() for scene in first] == [draw(scene).tobytes() for scene in second]


def test_another_seed_gives_other_scenes_and_a_longer_sequence_starts_with_a_shorter_one():
    assert list(scenes("train", 20, 0)) != list(scenes("train", 20, 1))
    assert list(scenes("train", 30, 0))[:20] == list(scenes("train", 20, 0))


def test_splits_share_no_composition_no_picture_and_no_id_whatever_the_seeds():
    for of in (lambda s: s.composition, lambda s: s.id, lambda s: draw(s).tobytes()):
        seen: dict[str, set] = {
            split: {of(scene) for seed in (0, 1) for scene in scenes(split, 300, seed)} for split in SPLITS
        }
        for one in SPLITS:
            assert not any(seen[one] & seen[other] for other in SPLITS if other != one)


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_drawings_are_in_hard_only_and_hard_has_no_others(split):
    for scene in scenes(split, 500, 0):
        items = [(thing.name, thing.hand) for thing in scene.things]
        items += [(scene.digit.name, scene.digit.hand)] if scene.digit else []
        for name, hand in items:
            assert (hand == held_out_hand(name)) == (split == "hard")


def test_held_out_hands_rotate():
    counts = Counter(held_out_hand(name) for name in CONCEPTS)
    assert set(counts) == set(HANDS) and max(counts.values()) <= 2 * min(counts.values())


@pytest.mark.parametrize("split", SPLITS)
def test_some_pairs_of_concepts_meet_in_unseen_only_and_every_scene_of_it_has_one(split):
    for scene in scenes(split, 300, 0):
        pairs = [frozenset(pair) for pair in combinations({thing.name for thing in scene.things}, 2)]
        assert any(map(is_unseen, pairs)) == (split == "unseen")


def test_concepts_are_drawn_by_zipfs_law():
    shown = Counter(thing.name for scene in scenes("train", 6000, 0) for thing in scene.things)
    names = list(CONCEPTS)
    tenth, hundredth = (sum(shown[name] for name in names[at : at + at]) / at for at in (10, 100))
    assert 11 < tenth / hundredth < 23  # the frequencies of ranks 10..19 and 100..199: 10 to the power of 1.2
    assert max(shown, key=shown.get) == names[0]


def test_absent_things_are_as_frequent_as_shown_ones():
    """Otherwise the more frequent answer would be right more often, without a look."""
    rng = random.Random(0)
    rank = {name: number for number, name in enumerate(CONCEPTS)}
    shown = [rank[name] < 20 for scene in SOME for name in {thing.name for thing in scene.things}]
    absent = [
        rank[drawn(tuple(CONCEPTS), rng, {t.name for t in scene.things})] < 20 for scene in SOME for _ in range(2)
    ]
    assert abs(sum(shown) / len(shown) - sum(absent) / len(absent)) < 0.08


def test_nothing_is_left_to_draw():
    with pytest.raises(ValueError, match="dog, cat"):
        drawn(("dog", "cat"), random.Random(0), {"cat", "dog"})


def test_a_scene_has_one_item_a_cell_and_one_to_four_things():
    for scene in SOME:
        items = [*scene.things, *([scene.digit] if scene.digit else [])]
        cells = [(item.row, item.column) for item in items]
        assert len(set(cells)) == len(cells) <= len(PLACES)
        assert scene.things


def test_a_picture_shows_its_background_and_an_icon_in_filled_cells_only():
    for scene in SOME[:40]:
        picture = draw(scene)
        assert picture.mode == "RGB" and picture.size == (SIZE, SIZE)
        filled = {(item.row, item.column) for item in (*scene.things, scene.digit) if item}
        half = SIZE // 2
        for row, column in PLACES:
            cell = picture.crop((column * half, row * half, (column + 1) * half, (row + 1) * half))
            plain = cell.getcolors(maxcolors=1) == [(half * half, COLOURS[scene.background])]
            assert plain == ((row, column) not in filled)


# Names and drawings


def test_every_symbol_has_two_distinct_names():
    assert all(symbol.isascii() and say(symbol, "zh") != symbol for symbol in SYMBOLS)
    assert len({say(symbol, "zh") for symbol in SYMBOLS}) == len(SYMBOLS)
    assert set(CONCEPTS.values()) == set(CATEGORIES)


def test_the_atlas_has_every_concept_by_three_hands_or_four_and_every_digit_by_all():
    index = json.loads((ASSETS / "atlas.json").read_text(encoding="utf-8"))
    hands = Counter(cell.split("/")[0] for cell in index["cells"])
    assert len(set(index["cells"])) == len(index["cells"]) and {c.split("/")[1] for c in index["cells"]} == set(HANDS)
    assert set(hands) == {*CONCEPTS, *map(str, range(10))}
    assert all(hands[name] >= (4 if name.isdigit() else 3) for name in hands)
    with (ASSETS / "atlas.webp").open("rb") as file:
        atlas = Image.open(file).convert("RGBA")
    size, columns = index["cell"], index["columns"]
    corners = [(n % columns * size, n // columns * size) for n in range(len(index["cells"]))]
    assert len({atlas.crop((x, y, x + size, y + size)).tobytes() for x, y in corners}) == len(corners)


def test_the_notice_names_every_hand_and_its_licence_is_shipped():
    notice = (ASSETS / "NOTICE").read_text(encoding="utf-8")
    for hand in HANDS:
        assert any(line.startswith(f"{hand} ") for line in notice.splitlines())
    for licence in ("Apache-2.0", "MIT", "CC-BY-4.0"):
        assert f"licences/{licence}.txt" in notice
        assert len((ASSETS / "licences" / f"{licence}.txt").read_text(encoding="utf-8")) > 1000


# Questions: recomputed from the scene by rules of the test's own


@pytest.mark.parametrize("style", [style for style in STYLES if style != "vizwiz_vqa_val"])
def test_answers_are_true_to_the_scene(style):
    for scene, question in asked(style):
        if question.options:
            assert len(set(question.options)) == len(question.options)
            chosen = question.options[LETTERS.index(question.answer)]
            if question.kind in ("leftmost", "topmost"):
                names = {t.name: t for t in scene.things}
                other = next(option for option in question.options if option != chosen)
                axis = "column" if question.kind == "leftmost" else "row"
                assert getattr(names[chosen], axis) < getattr(names[other], axis)
            else:
                assert chosen == say(true_answer(scene, question), question.language)
        elif question.answer in ("yes", "no"):
            assert holds(scene, question.text) == (question.answer == "yes"), (scene, question)
        else:
            assert question.answer == true_answer(scene, question)


def test_vizwiz_questions_are_answered_or_truly_unanswerable():
    for scene, question in asked("vizwiz_vqa_val"):
        if question.kind == "name":
            item = at(scene, place_in(question.text))
            true = item.name if item else "unanswerable"
        elif question.kind == "number":
            true = scene.digit.name if scene.digit else "unanswerable"
        else:
            (name,) = named_in(question.text)
            shown = name in [thing.name for thing in scene.things]
            true = (next_to(scene, name, 0, -1) or next_to(scene, name, 0, 1)) if shown else "unanswerable"
        assert question.answer == true


@pytest.mark.parametrize("style", ["mme", "pope"])
def test_yes_and_no_are_equally_frequent(style):
    answers = Counter(question.answer for _, question in asked(style))
    assert abs(answers["yes"] - answers["no"]) < 0.1 * len(SOME)


def test_what_a_statement_says_does_not_tell_whether_it_is_true():
    """A rule that learns from most statements how often each was true is hardly better than a coin on the others."""
    rng = random.Random(0)
    some = list(scenes("train", 12_000, 11))
    for kind, make in STATEMENTS.items():
        truths = [rng.random() < 0.5 for _ in some]
        said = [(make(scene, rng, truth), truth) for scene, truth in zip(some, truths, strict=True)]
        said = [(text, truth) for text, truth in said if text]
        seen, others = Counter(said[2000:]), said[:2000]
        more = [seen[text, truth] - seen[text, not truth] for text, truth in others]
        assert sum(0.5 if count == 0 else count > 0 for count in more) / len(others) < 0.57, kind


@pytest.mark.parametrize("style", ["mmbench_en_dev", "mmbench_cn_dev", "mmmu_val"])
def test_letters_are_uniform(style):
    letters = Counter(question.answer for _, question in asked(style) if len(question.options) == 4)
    total = sum(letters.values())
    assert all(abs(letters[letter] / total - 0.25) < 0.06 for letter in LETTERS)


@pytest.mark.parametrize("style", ["gqa", "textvqa_val", "vizwiz_vqa_val", "vqav2_val"])
def test_no_open_answer_dominates(style):
    answers = Counter(question.answer for _, question in asked(style))
    assert max(answers.values()) < 0.3 * answers.total()


def test_a_pair_asks_one_category_and_is_answered_yes_then_no():
    kinds = Counter()
    for scene in SOME[:400]:
        yes, no = ask_pair(scene, random.Random(scene.id))
        assert yes.kind == no.kind and yes.text != no.text
        assert (yes.answer, no.answer) == ("yes", "no")
        assert holds(scene, yes.text) and not holds(scene, no.text)
        kinds[yes.kind] += 1
    assert set(kinds) == {"existence", "count", "position", "color", "OCR"}


def test_textvqa_refuses_a_scene_without_a_sign():
    scene = next(scene for scene in SOME if scene.digit is None)
    with pytest.raises(ValueError, match="no sign"):
        ask(scene, "textvqa_val", random.Random(0))


def test_annotated_styles_have_ten_answers():
    for style in ("textvqa_val", "vizwiz_vqa_val", "vqav2_val"):
        assert all(question.answers == (question.answer,) * 10 for _, question in asked(style, 50))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_caption_names_everything(language):
    for scene in SOME[:200]:
        text = caption(scene, random.Random(0), language)
        assert say(scene.background, language) in text
        for thing in scene.things:
            assert say(thing.name, language) in text
            assert say(PLACES[thing.row, thing.column], language) in text
        assert scene.digit is None or scene.digit.name in text


# Rows


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_llava_json(tmp_path, kind):
    file = write_rows(tmp_path / "rows", kind=kind, split="train", pictures=12, turns=5, seed=1)
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert len({row["id"] for row in rows}) == 12
    for row in rows:
        turns = row["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * 5
        assert all(turn["value"] for turn in turns)
        images = [turn["value"].count("<image>") for turn in turns]
        assert sum(images) == images[0] == 1
        assert turns[0]["value"].startswith("<image>\n")
        with Image.open(file.parent / row["image"]) as picture:
            assert picture.size == (SIZE, SIZE)


def test_the_same_request_is_not_written_again_and_another_replaces_it(tmp_path):
    request = {"kind": "questions", "split": "test", "pictures": 3, "turns": 2, "seed": 0}
    file = write_rows(tmp_path / "rows", **request)
    text, written = file.read_bytes(), file.stat().st_mtime_ns
    assert write_rows(tmp_path / "rows", **request).stat().st_mtime_ns == written
    assert write_rows(tmp_path / "elsewhere", **request).read_bytes() == text
    write_rows(tmp_path / "rows", **request | {"pictures": 4})
    assert len(json.loads(file.read_text(encoding="utf-8"))) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "rows"]


def test_wrong_requests_are_reported_together(tmp_path):
    asked = "playground, parameters: {kind: riddles, split: dev, pictures: 0, turns: -1}"
    file = write(tmp_path, ("llava_json, parameters: {file: captions.json, images: pictures}", asked))
    with pytest.raises(UserError) as error:
        load(file)
    at = f"{file}:5: data.captions.parameters"
    assert [problem for problem in error.value.problems if problem.startswith(at)] == [
        f"{at}.kind: must be one of captions, questions, instructions, preferences, got 'riddles'",
        f"{at}.pictures: must be greater than 0, got 0",
        f"{at}.split: must be one of train, validation, test, hard, unseen, got 'dev'",
        f"{at}.turns: must be greater than 0, got -1",
    ]


def test_foreign_files_are_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not the playground's"):
        write_rows(tmp_path, kind="captions", split="train", pictures=1, turns=1, seed=0)
    assert (tmp_path / "mine.txt").read_text() == "keep"


# Tokenizer


def test_texts_round_trip(tokenizer):
    """All but spaces at the start of a line and before a Chinese word, which the tokenizer leaves out."""
    texts = [prompt(question) for style in STYLES for _, question in asked(style, 150)]
    for scene in SOME[:100]:
        texts += [text for make in (*KINDS.values(), drill, choose) for text in make(scene, random.Random(1))]
        rows = (text_row(scene, random.Random(1), 4), list_row(random.Random(1), 4))
        texts += [text for row in rows for turn in row for text in turn]
    texts += ["Something else: naïve 猫科 cats\n\n  hats?"]  # one of the two spaces is kept
    for text in texts:
        written = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        assert written == re.sub("(?<=\n) (?=[A-Za-z])| (?=[\u4e00-\u9fff])", "", text)


def test_a_name_is_one_id_in_an_answer_an_option_and_a_sentence(tokenizer):
    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    for symbol in SYMBOLS:
        words = len(symbol.split(" "))  # a place has two
        assert len(ids(symbol)) == words and len(ids(say(symbol, "zh"))) == 1
        for text in (f"at the {symbol}.", f"\n{symbol}\n", f"A. {symbol}", f"?\nA. {symbol}\nB. "):
            assert str(ids(symbol))[1:-1] in str(ids(text))
    assert len(ids("yes")) == len(ids("no")) == len(ids("unanswerable")) == 1
    assert all(ids(letter) == [ids(f"\n{letter}. ")[1]] for letter in LETTERS)


def test_ids_are_dense_and_few(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert len(tokenizer) <= 2000
    used = {id for scene in SOME for text in drill(scene, random.Random(scene.id)) for id in tokenizer.encode(text)}
    assert used < set(tokenizer.get_vocab().values())


def test_the_chat_template_puts_images_first_and_ends_answers(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "Where?"}, {"type": "image"}]},
        {"role": "assistant", "content": "here"},
        {"role": "user", "content": "Why?"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<image><|user|>Where?<|assistant|>here<|end|><|user|>Why?<|assistant|>"
    for token in ("<image>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1


def test_a_second_writer_waits_and_leaves_the_first_ones_rows_alone(tmp_path, monkeypatch):
    request = {"kind": "captions", "split": "train", "pictures": 4, "turns": 2, "seed": 9}
    folder, build, builds, others = tmp_path / "rows", training_rows._build, [], []

    def slow(building, *wanted):
        builds.append(building)
        others.append(pool.submit(write_rows, folder, **request))  # as another process would, while ours is drawing
        with pytest.raises(TimeoutError):
            others[0].result(timeout=0.5)
        build(building, *wanted)

    monkeypatch.setattr(training_rows, "_build", slow)
    with ThreadPoolExecutor() as pool:
        assert write_rows(folder, **request) == others[0].result(timeout=60) == folder / "rows.json"
    assert len(builds) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
