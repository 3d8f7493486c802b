"""A stage's validation: which examples, what its figures are, and that the training does not notice it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_map

from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.engine.data.sources import messages
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.checkpointing import CheckpointWriter
from switchkd_cli.engine.training.loop import Loop, train
from switchkd_cli.engine.training.validation import draw_by_image, split, whole_answers
from switchkd_cli.errors import UserError
from switchkd_cli.files.atomic import write_json
from switchkd_cli.recipe.schema import Saving, Stage
from switchkd_cli.runs import checkpoints
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import tiny

CE = {"name": "ce", "loss": "cross_entropy"}
ALIGN = {"name": "align", "loss": "dbild", "to": "teacher"}
VSD = {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"}
FEATURES = {"name": "fm", "loss": "token_mse", "to": "teacher"}  # of images alone; unlike widths: an adapter
OURS_ALONE = {"seconds", "tokens_per_second", "data_wait", "memory_mib"}  # the clock's and the machine's


def stage(validation=None, **changes):
    settings = {"name": "distill", "data": "rows", "train": ["vision", "projector", "language"], "lr": 1e-3}
    settings |= {"batch": 4, "micro_batch": 2, "steps": 6, "objective": [CE, ALIGN, VSD, FEATURES]}
    validation = None if validation is None else {"data": "others", "every_steps": 2} | validation
    return Stage.model_validate(settings | {"validation": validation} | changes)


def held_out(folder):
    """Seven examples of which some have an image, in conversations of one or two answers."""
    (folder / "others").mkdir(exist_ok=True)
    answers = ["a dog", "yes", "three red apples", "at the top left", "no", "two", "a bus and a cat"]
    rows = []
    for number, answer in enumerate(answers):
        image = tiny.picture(folder / "others", f"{number}.png", 10 + number) if number % 3 == 0 else None
        more = [("And?", "nothing more")] if number % 2 else []
        rows.append(tiny.row(f"v{number}", image, ("What?", answer), *more))
    return rows


def pair(*, dropout=0.0, teacher=True):
    student = tiny.model(seed=1)
    student.model.model.language_model.layers[0].self_attn.attention_dropout = dropout
    return Paths(student, tiny.model(24, seed=2) if teacher else None, len(student.inputs.processor.tokenizer))


def loop(folder, of, lines, *, which=None, rows=None, writer=None, turns="chained", **how):
    paths = pair(**how)
    data = tiny.conversations(paths.student, folder, turns, rows)
    others = tiny.conversations(paths.student, folder / "others", turns, which or held_out(folder))
    train_on, validate_on = split(of, {"rows": data, "others": others})
    settings = {"seed": 3, "precision": "fp32", "log": lines.append, "writer": writer}
    return Loop(of, paths, train_on, held_out=validate_on, **settings), paths


def traced(lines, *, validation=True):
    kept = [{k: v for k, v in line.items() if k not in OURS_ALONE} for line in lines]
    return kept if validation else [{k: v for k, v in line.items() if "validation" not in k} for line in kept]


def ran(folder, validation=None, *, changes=None, **how):
    lines = []
    made, paths = loop(folder, stage(validation, **(changes or {})), lines, **how)
    made.run()
    return lines, paths, made


def validated(lines):
    """Return the figures by step, without their prefix."""
    return {
        line["step"]: {k.removeprefix("validation/"): v for k, v in line.items() if k.startswith("validation/")}
        for line in lines
        if "validation/loss" in line
    }


# --- which examples


def shared_images(folder, *, count=40):
    """Return rows of which every third has no image, and the others share twelve images under two spellings."""
    for number in range(12):
        tiny.picture(folder, f"{number}.png", number)
    images = [None if n % 3 == 0 else ("./" * (n % 2)) + f"{n % 12}.png" for n in range(count)]
    return [tiny.row(f"r{n}", image, ("What?", "a dog")) for n, image in enumerate(images)]


def test_a_share_is_drawn_image_by_image_and_left_out_of_training(tmp_path):
    rows = shared_images(tmp_path)
    data = {"rows": tiny.conversations(tiny.model(), tmp_path, which=rows)}
    train_on, validate_on = split(stage({"data": None, "share": 0.3}), data)
    images = [
        {rows[i].get("image", f"text {i}").removeprefix("./") for i in part.chosen} for part in (train_on, validate_on)
    ]
    assert not images[0] & images[1]
    assert sorted([*train_on.chosen, *validate_on.chosen]) == list(range(40))
    assert 12 <= len(validate_on) <= 12 + 4  # as much as one image has more
    assert any("image" in rows[i] for i in validate_on.chosen) and any(
        "image" not in rows[i] for i in validate_on.chosen
    )
    assert {train_on[i].id for i in range(len(train_on))} == {rows[i]["id"] for i in train_on.chosen}


def test_a_share_is_drawn_once_for_all_stages_and_what_follows(tmp_path):
    class Counted(list):
        read = 0

        def __getitem__(self, number):
            Counted.read += 1
            return super().__getitem__(number)

    data = {"rows": tiny.conversations(tiny.model(), tmp_path, which=shared_images(tmp_path))}
    data["rows"].rows.raw = Counted(data["rows"].rows.raw)
    first, again = (split(stage({"data": None, "share": 0.3}), data) for _ in range(2))
    assert Counted.read == 40 and [part.chosen for part in first] == [part.chosen for part in again]


def test_encoded_images_are_compared_by_their_bytes(tmp_path):
    pixels = [np.full((8, 8, 3), 20 * n, np.uint8) for n in range(6)]
    files = []
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        files.append((tmp_path / f"{number}.png").read_bytes())
    rows = [tiny.row(str(n), "x", ("What?", "a dog")) | {"image": {"bytes": files[n % 6]}} for n in range(24)]
    drawn = draw_by_image(Rows(rows, llava_row), 0.25)
    assert len(drawn) == 8 and len({n % 6 for n in drawn}) == 2  # two images, all four rows of each


def test_the_examples_are_the_same_whatever_seed_and_rows_of_a_table(tmp_path):
    data = {"rows": tiny.conversations(tiny.model(), tmp_path, which=shared_images(tmp_path))}
    spec = {"data": None, "share": 0.3}
    one, two = (split(stage(spec, objective=terms), data) for terms in ([CE], [CE, ALIGN]))
    assert [part.chosen for part in one] == [part.chosen for part in two]
    few = split(stage(spec | {"rows": 5}), data)
    assert few[1].chosen == one[1].chosen[:5] and few[0].chosen == one[0].chosen  # the rest is left out all the same
    more = split(stage(spec | {"share": 0.5}), data)
    assert more[1].chosen[: len(one[1])] == one[1].chosen


def test_of_another_data_set_at_most_rows_are_taken_and_training_keeps_all(tmp_path):
    data = {"rows": tiny.conversations(tiny.model(), tmp_path)}
    data["others"] = tiny.conversations(tiny.model(), tmp_path / "others", which=held_out(tmp_path))
    train_on, validate_on = split(stage({"rows": 5}), data)
    assert train_on is data["rows"] and len(set(validate_on.chosen)) == len(validate_on) == 5
    assert len(split(stage({}), data)[1]) == 7


def test_a_share_that_leaves_nothing_to_train_on_is_an_error(tmp_path):
    tiny.picture(tmp_path, "a.png", 1)
    rows = [tiny.row(str(n), "a.png", ("What?", "a dog")) for n in range(8)]
    data = {"rows": tiny.conversations(tiny.model(), tmp_path, which=rows)}
    with pytest.raises(UserError, match="stages.distill.validation.share: 0.1 of rows leaves no row to train on"):
        split(stage({"data": None, "share": 0.1}), data)


def test_unusable_rows_are_replaced_within_their_part_or_not_at_all(tmp_path):
    """Held-out examples never stand in for training's, and a validation counts none twice."""
    rows = shared_images(tmp_path)
    data = Conversations(Rows(rows, llava_row, images=tmp_path), tiny.model().inputs, max_faults=0.9)
    train_on, validate_on = split(stage({"data": None, "share": 0.3}), {"rows": data})
    gone = {str(n) + ".png" for n in range(12)}
    for name in gone:
        (tmp_path / name).unlink()
    ids = {row["id"] for row in rows}
    held = {rows[i]["id"] for i in validate_on.chosen}
    assert {train_on[i].id for i in range(len(train_on))} <= ids - held


# --- what the figures are


def by_hand(paths, data):
    """Return the mean cross-entropy of the answers' tokens, agreement and exact match, one example at a time."""
    student, nats, agreed, whole = paths.student, [], [], []
    paths.eval()
    with torch.no_grad():
        for example in (data[i] for i in range(len(data))):
            batch = tiny.together(student, [example])
            keep = batch.predicting("answer")
            logits = paths(batch, ("student", "teacher") if paths.teacher else ("student",), keep)
            best, targets = logits["student"].double(), batch.targets[keep]
            nats += (-best.log_softmax(-1)[range(len(targets)), targets]).tolist()
            right = dict(zip(keep[0].nonzero()[:, 0].tolist(), (best.argmax(-1) == targets).tolist(), strict=True))
            if paths.teacher:
                agreed += (best.argmax(-1) == logits["teacher"].argmax(-1)).tolist()
            runs = []
            for place, is_right in right.items():
                runs = [*runs, []] if place - 1 not in right else runs
                runs[-1].append(is_right)
            whole += [all(run) for run in runs]
    means = [sum(values) / len(values) if values else None for values in (nats, agreed, whole)]
    return dict(zip(("loss/ce", "agreement", "exact_match"), means, strict=True)), len(whole)


@pytest.mark.parametrize("turns", ["chained", "independent"])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_figures_are_means_over_all_examples_whatever_the_batches(tmp_path, turns, micro):
    lines, paths, made = ran(tmp_path, {}, turns=turns, changes={"micro_batch": micro}, dropout=0.2)
    found = validated(lines)
    assert list(found) == [2, 4, 6]
    expected, answers = by_hand(paths, made.validation.data)
    assert answers == 7 + 3
    for name, value in expected.items():
        assert found[6][name] == pytest.approx(value, rel=1e-4), name
    terms = [found[6][f"loss/{name}"] for name in ("ce", "align", "vsd", "fm")]
    assert found[6]["loss"] == pytest.approx(sum(terms)) and all(term > 0 for term in terms)


def test_a_term_has_the_value_of_a_training_step_on_the_same_examples(tmp_path):
    """With a learning rate that changes nothing, and all examples in one step."""
    rows = tiny.rows(tmp_path)
    settings = {"batch": 4, "micro_batch": 4, "steps": 2, "lr": 1e-30}
    lines, *_ = ran(tmp_path, {"every_steps": 1}, changes=settings, which=rows_elsewhere(tmp_path, rows))
    last = [line for line in lines if "step" in line][-1]
    for term in ("ce", "align", "vsd", "fm"):
        assert last[f"validation/loss/{term}"] == pytest.approx(last[f"loss/{term}"], rel=1e-4), term
    assert last["validation/agreement"] == pytest.approx(last["agreement/student"])


def rows_elsewhere(folder, rows):
    """Copy the images of the rows to where those of a validation are."""
    (folder / "others").mkdir(exist_ok=True)
    for row in rows:
        if "image" in row:
            (folder / "others" / row["image"]).write_bytes((folder / row["image"]).read_bytes())
    return rows


def test_exact_match_is_what_greedy_generation_gives(tmp_path):
    """The student learns two answers by heart, and has never seen a third."""
    rows = [tiny.row("a", None, ("Is there a dog?", "no dog")), tiny.row("b", None, ("What is it?", "a red apple"))]
    others = [*rows, tiny.row("c", None, ("Where?", "at the top left"))]
    (tmp_path / "others").mkdir()
    settings = {"objective": [CE], "lr": 1e-2, "steps": 150, "batch": 2, "train": ["language"]}
    lines, paths, made = ran(tmp_path, {"every_steps": 150}, changes=settings, which=others, rows=rows, teacher=False)
    assert validated(lines)[150]["exact_match"] == pytest.approx(2 / 3)
    student, generated = paths.student.eval(), []
    for example in (made.validation.data.example(i) for i in range(3)):
        answer = example.labels[example.labels != -100].tolist()
        tokens = example.input_ids[: (example.labels != -100).nonzero()[0, 0]].tolist()
        prompt = len(tokens)
        for _ in answer:
            batch = tiny.together(student, [example])
            ids = torch.tensor([tokens])
            out = student.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
            tokens.append(int(out[: paths.vocabulary].argmax()))
        generated.append(tokens[prompt:] == answer)
    assert generated == [True, True, False] and batch.ids == ("c",)


def test_whole_answers_are_counted_run_by_run():
    answers = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    assert whole_answers(answers, answers) == (4, 4)
    right = answers.clone()
    right[0, 2] = right[1, 3] = right[1, 4] = False
    assert whole_answers(answers, right) == (2, 4)
    assert whole_answers(answers, torch.zeros_like(answers)) == (0, 4)


def test_a_stage_without_a_teacher_has_no_agreement(tmp_path):
    lines, *_ = ran(tmp_path, {}, changes={"objective": [CE]}, teacher=False)
    assert validated(lines)[6].keys() == {"loss", "loss/ce", "exact_match"}


def test_logits_that_no_term_reads_are_computed_all_the_same(tmp_path):
    settings = {"objective": [FEATURES], "train": ["projector"]}
    lines, paths, made = ran(tmp_path, {}, changes=settings)
    expected, _ = by_hand(paths, made.validation.data)
    assert validated(lines)[6]["agreement"] == pytest.approx(expected["agreement"])
    assert validated(lines)[6]["exact_match"] == expected["exact_match"]


def test_a_term_that_no_example_has_anything_for_is_left_out(tmp_path):
    (tmp_path / "others").mkdir()
    texts = [tiny.row("t", None, ("What?", "a dog"))]
    lines, *_ = ran(tmp_path, {}, which=texts)
    assert "loss/fm" not in validated(lines)[6] and validated(lines)[6]["loss"] > 0
    with pytest.raises(UserError, match="none of its 1 examples has what validation/loss/fm is measured on"):
        ran(tmp_path, {"monitor": "validation/loss/fm"}, which=texts)


def test_unusable_examples_are_left_out_and_counted(tmp_path):
    lines, made = [], None
    rows = held_out(tmp_path)
    made, paths = loop(tmp_path, stage({}), lines, which=rows)
    made.validation.data.bad_rows.allowed = 0.5
    (tmp_path / "others" / "3.png").unlink()
    made.run()
    assert list(made.validation.data.bad_rows.unusable) == [3]
    made.validation.data.chosen = [row for row in made.validation.data.chosen if row != 3]
    expected, answers = by_hand(paths, made.validation.data)
    assert answers == 8  # that conversation had two
    assert validated(lines)[6]["loss/ce"] == pytest.approx(expected["loss/ce"], rel=1e-4)


def test_too_many_unusable_examples_end_the_run(tmp_path):
    made, _ = loop(tmp_path, stage({}), [])
    (tmp_path / "others" / "3.png").unlink()
    with pytest.raises(UserError, match="row 3: v3"):
        made.run()


@pytest.mark.parametrize("how", ["by_row", "cached"])
def test_teacher_states_of_single_examples_serve_the_validation_too(tmp_path, how):
    plain, *_ = ran(tmp_path, {})
    paths, lines = pair(), []
    data = tiny.conversations(paths.student, tmp_path)
    others = tiny.conversations(paths.student, tmp_path / "others", which=held_out(tmp_path))
    of = stage({}, teacher_states=how)
    train_on, validate_on = split(of, {"rows": data, "others": others})
    settings = {"seed": 3, "precision": "fp32", "log": lines.append}
    train(of, paths, train_on, held_out=validate_on, states=tmp_path / "states.sqlite", **settings)
    for step, figures in validated(lines).items():
        assert figures == pytest.approx(validated(plain)[step], rel=1e-3, abs=1e-5)


# --- the training does not notice


@pytest.mark.parametrize("settings", [{}, {"workers": 2}], ids=str)
def test_a_validation_changes_no_step(tmp_path, settings):
    """With dropout, which draws random numbers in every step."""
    without, paths, _ = ran(tmp_path, dropout=0.2, changes=settings)
    lines = []
    made, others = loop(tmp_path, stage({"every_steps": 1}, **settings), lines, dropout=0.2)
    example = made.validation.data.example
    made.validation.data.example = lambda row: (torch.rand(3), example(row))[1]  # whatever draws numbers in between
    made.run()
    assert len(validated(lines)) == 6
    assert traced(lines, validation=False) == traced(without)
    assert all(torch.equal(p, q) for p, q in zip(paths.parameters(), others.parameters(), strict=True))


class Left(Exception):
    pass


@pytest.mark.parametrize("at", [3, 4, 6])
def test_a_stage_with_patience_resumes_bit_equal(tmp_path, at):
    """Stopped between two validations, right after one, and after the one that ends the stage."""
    validation = {"every_steps": 2, "patience": 2, "monitor": "validation/exact_match"}
    lines, paths, whole = ran(tmp_path, validation, changes={"steps": 12}, dropout=0.2)
    assert whole.step == 6  # no answer is right: the first validation is the best, and two are waited for
    again, state = [], {}
    first, _ = loop(tmp_path, stage(validation, steps=12), again, dropout=0.2)

    def leave():
        if first.step == at:  # where a checkpoint is written
            state.update(tree_map(lambda v: v.clone() if torch.is_tensor(v) else v, first.state_dict()))
            raise Left

    first._save_or_stop = leave
    with pytest.raises(Left):
        first.run()
    assert math.isfinite(state["validation"]["best"])
    second, others = loop(tmp_path, stage(validation, steps=12), again, dropout=0.2)
    second.load_state_dict(state)
    second.run()
    assert second.step == 6 and traced(again) == traced(lines)
    assert all(torch.equal(p, q) for p, q in zip(paths.parameters(), others.parameters(), strict=True))


# --- the best, and the early end


def writer(folder, **saving):
    path = folder / "runs" / "recipe" / "row" / "seed0"
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "run.json", {})
    return CheckpointWriter(RunFolder(path), "distill", Saving(every_minutes=None, **saving))


def test_without_a_better_figure_the_stage_ends(tmp_path):
    lines = []
    validation = {"every_steps": 2, "patience": 2, "monitor": "validation/exact_match"}
    made, _ = loop(tmp_path, stage(validation, steps=12), lines)
    made.run()
    made.finish()
    assert list(validated(lines)) == [2, 4, 6] and made.step == 6
    (said,) = [line for line in lines if line.get("about") == "early end"]
    assert said["text"] == "ended at step 6 of 12: no better validation/exact_match in 2 validations"
    assert said["step"] == said["steps"] == 6  # to a run that resumes, the stage lacks no step


@pytest.mark.parametrize(
    ("monitor", "values"),
    [
        ("validation/loss", [3.0, 1.0, math.nan, 2.0, 0.5, 0.5]),
        ("validation/agreement", [0.1, 0.3, math.nan, 0.2, 0.9, 0.9]),
        ("validation/exact_match", [0.0, 0.3, 0.3, 0.2, 0.9, 0.9]),
    ],
)
def test_better_is_lower_or_higher_as_the_figure_wants_and_never_nan(tmp_path, monitor, values):
    lines, left = [], iter(values)
    made, _ = loop(tmp_path, stage({"every_steps": 1, "patience": 2, "monitor": monitor}), lines)
    made.validation._means = lambda batches: {monitor: next(left)}
    made.run()
    assert made.step == 4  # the second is the best, and two are waited for


def test_while_it_gets_better_it_goes_to_its_end(tmp_path):
    settings = {"objective": [CE], "lr": 1e-2, "steps": 12, "train": ["language"]}
    rows = rows_elsewhere(tmp_path, tiny.rows(tmp_path))
    lines, _, made = ran(tmp_path, {"patience": 1}, changes=settings, which=rows, teacher=False)
    losses = [figures["loss"] for figures in validated(lines).values()]
    assert made.step == 12 and losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("best", "figures", "expected"),
    [
        ("validation/loss", [3.0, 1.0, 2.0, math.nan], 4),
        ("validation/loss/ce", [3.0, 2.0, 1.0, 4.0], 6),
        ("validation/agreement", [0.1, 0.2, 0.9, 0.8], 6),
        ("validation/exact_match", [0.4, 0.2, 0.3, 0.0], 2),
    ],
)
def test_the_best_is_that_of_the_best_validation_and_has_its_weights(tmp_path, best, figures, expected):
    """Checkpoints of every third step never fall on the best validation: one more is written for it."""
    saves = writer(tmp_path, every_steps=3, keep=1, best=best)
    for step in range(1, 9):
        saves.add_score({best: figures[step // 2 - 1]} if step % 2 == 0 else {"loss": 0.0})
        if saves.is_due(step):
            saves.save(step, {"step": step, "weights": {"w": torch.full((3,), float(step))}})
    assert saves.best().name == f"distill-{expected}"
    scores = {state.step: state.score for state in checkpoints.saved(saves.folder, "distill")}
    sign = -1 if best in ("validation/agreement", "validation/exact_match") else 1
    assert scores[expected] == sign * figures[expected // 2 - 1]


def test_a_training_saves_its_best_validation(tmp_path):
    lines, saves = [], writer(tmp_path, best="validation/loss", keep=1)
    settings = {"lr": 3e-2, "steps": 40, "objective": [CE], "train": ["language"]}
    made, _ = loop(tmp_path, stage({"every_steps": 1}, **settings), lines, writer=saves, teacher=False)
    made.run()
    made.finish()
    found = validated(lines)
    best = min(found, key=lambda step: found[step]["loss"])
    assert best < 40  # it learns its four examples by heart, not others
    assert saves.best().name == f"distill-{best}"


def test_parquet_rows_with_encoded_images_are_split_by_image(tmp_path):
    import pyarrow
    import pyarrow.parquet

    tiny.picture(tmp_path, "a.png", 1)
    tiny.picture(tmp_path, "b.png", 2)
    encoded = [{"bytes": (tmp_path / f"{'ab'[n % 2]}.png").read_bytes(), "path": None} for n in range(6)]
    turns = [[{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "a dog"}]] * 6
    table = pyarrow.table({"messages": turns, "image": encoded})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = messages(tmp_path, file=str(tmp_path / "rows.parquet"))
    assert sorted(draw_by_image(rows, 0.2)) in ([0, 2, 4], [1, 3, 5])
