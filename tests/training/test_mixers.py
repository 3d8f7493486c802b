"""Mixers: each rule by hand, whose rows a round has, and that a stage in rounds resumes bit-equal."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_map

from switchkd_cli.engine.data.conversation import Variants
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training import mixers
from switchkd_cli.engine.training.checkpointing import read_state, write_state
from switchkd_cli.engine.training.data_loader import count_steps, mixed_order, order, visit_order
from switchkd_cli.engine.training.figures import SKETCH, sketched
from switchkd_cli.engine.training.loop import Loop
from switchkd_cli.engine.training.rounds import Rounds, scored_rows
from switchkd_cli.engine.training.validation import split
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import Stage
from tests.support import tiny, tiny_run

OURS_ALONE = {"seconds", "tokens_per_second", "data_wait", "memory_mib"}  # the clock's and the machine's
KD = {"name": "kd", "loss": "forward_kl", "to": "teacher"}
MIXED = [{"use": "pictured", "weight": 1}, {"use": "texts", "weight": 1}]
DDK = {"by": "ddk", "rounds": 3, "rows": 1}


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def stage(mixer=None, **changes):
    base = {"name": "distill", "data": "rows", "train": ["vision", "projector", "language"], "lr": 1e-2}
    base |= {"batch": 4, "micro_batch": 2, "steps": 6, "objective": [tiny_run.CE, KD], "mixer": mixer}
    return Stage.model_validate(base | changes)


def test_a_stage_has_a_step_for_each_round():
    made = stage({"by": "divergence", "rounds": 6, "candidates": 2}, steps=None, epochs=1.0)
    assert count_steps(made, 24) == 6
    with pytest.raises(UserError, match="mixer.rounds: a round takes a step or more, and the stage has 5: got 6"):
        count_steps(made, 20)


# --- the rules


def test_ddk_is_the_paper_s_formula():
    before, student, teacher = [0.5, 0.3, 0.2], [2.0, 1.5, 0.7], [1.1, 1.4, 0.5]
    psi = [r * math.exp(math.exp(s) / math.exp(t)) for r, s, t in zip(before, student, teacher, strict=True)]
    expected = [0.5 * each / sum(psi) + 0.5 / 3 for each in psi]
    found = mixers.ddk(double(*before), double(*student), double(*teacher))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    softer = mixers.ddk(double(*before), double(*student), double(*teacher), smoothing=1.0, temperature=4.0)
    psi = [r * math.exp(math.exp(s - t) / 4) for r, s, t in zip(before, student, teacher, strict=True)]
    assert softer.tolist() == pytest.approx([each / sum(psi) for each in psi], rel=1e-12)


@pytest.mark.parametrize("sets", [2, 3, 5, 8])
def test_sets_that_lack_the_same_keep_equal_weights_exactly(sets):
    weights = torch.full((sets,), 1 / sets, dtype=torch.float64)
    for _ in range(20):
        weights = mixers.ddk(weights, double(*[2.3] * sets), double(*[1.1] * sets))
    assert len(set(weights.tolist())) == 1 and weights.sum().item() == pytest.approx(1, abs=1e-15)


def test_the_share_of_a_solved_set_falls_to_its_floor():
    weights, shares = double(0.5, 0.5), []
    for _ in range(30):
        weights = mixers.ddk(weights, double(1.0, 3.0), double(1.0, 1.0))
        shares.append(weights[0].item())
    assert shares == sorted(shares, reverse=True) and 0.25 <= shares[-1] < 0.26


def test_scores_are_the_figures_themselves_and_lag_their_difference():
    values = double(3.0, 1.0, 2.0)
    assert mixers.by_divergence(values) is mixers.by_confidence(values) is values
    assert mixers.by_lag(values, double(1.0, 1.0, 2.5)).tolist() == [2.0, 0.0, -0.5]


def greedy(points, count):
    """Return the k-centre's choice by its definition."""
    chosen = [0]
    while len(chosen) < count:
        nearest = [min(math.dist(point, points[c]) for c in chosen) for point in points]
        chosen.append(max((i for i in range(len(points)) if i not in chosen), key=nearest.__getitem__))
    return chosen


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 12), st.data())
def test_the_k_centre_is_the_greedy_one(seed, rows, data):
    count = data.draw(st.integers(1, rows))
    points = torch.rand(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scores = mixers.k_centre(points, count)
    by_score = scores.sort(descending=True, stable=True).indices[:count].tolist()
    assert by_score == greedy(points.tolist(), count) and (scores > 0).sum() == count


def test_equal_rows_are_chosen_once_each():
    scores = mixers.k_centre(torch.ones(4, 3), 3)
    assert sorted(scores.tolist()) == [0, 1, 2, 3]


def test_a_sketch_keeps_distances():
    small = torch.rand(6, 300, dtype=torch.float64).softmax(-1)
    assert torch.allclose(torch.cdist(sketched(small), sketched(small)), torch.cdist(small, small), atol=1e-12)
    draw = torch.Generator().manual_seed(1)
    large = torch.randn(8, 5000, dtype=torch.float64, generator=draw).mul(3).softmax(-1)
    assert sketched(large).shape == (8, SKETCH)
    ratio = torch.pdist(sketched(large)) / torch.pdist(large)
    assert ratio.min() > 0.8 and ratio.max() < 1.2


# --- the rows of a round, with figures that are made up


class MadeUp:
    """What a mixer reads: a value of each row, and of an image's variants."""

    def __init__(self, seed=0):
        self.seed, self.asked = seed, []

    def __call__(self, data, rows):
        self.asked.append(list(rows))
        value = torch.stack([torch.rand(4, generator=torch.Generator().manual_seed(self.seed + row)) for row in rows])
        tokens = 1 + value[:, 3].mul(5).floor().double()
        names = ("student_loss", "teacher_loss", "divergence")
        found = {name: value[:, i].double() * tokens for i, name in enumerate(names)}
        return {**found, "tokens": tokens, "confidence": found["divergence"], "teacher_distribution": value.double()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rows = tiny.rows(folder)
    more = [
        tiny.row(f"{row['id']}{n}", row.get("image"), ("What?", "a dog" * (n + 1))) for n in range(3) for row in rows
    ]
    return tiny.conversations(tiny.model(), folder, which=rows + more)


@settings(deadline=None, max_examples=40)
@given(
    by=st.sampled_from(["divergence", "confidence", "lag", "k_centre"]),
    candidates=st.integers(1, 3),
    variants=st.integers(1, 3),
    again=st.booleans(),
    rounds=st.integers(1, 8),
    grouped=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_round_has_its_number_of_rows_all_of_them_candidates(
    data, by, candidates, variants, again, rounds, grouped, seed
):
    mixer = {"by": by, "candidates": candidates, "variants": variants, "again": again, "rounds": rounds}
    of = stage(mixer, group_by="modality_length" if grouped else None)
    made, read = Rounds(of, data, 6, seed), MadeUp(seed)
    step, scored, last = 0, 0, []
    while step < 6:
        figures = made.draw(step, read)
        rows = made.left(step)
        assert len(rows) == 4 * min(-(-6 // rounds), 6 - step) and set(rows) <= set(read.asked[-1])
        pool = {row % len(data) for row in read.asked[-1]}
        assert len({row % len(data) for row in rows}) == min(len(rows), len(pool))  # none twice while there are others
        drawn = len(rows) * candidates + again * len({row % len(data) for row in last})
        assert figures["scored"] == len(read.asked[-1]) == len(set(read.asked[-1])) <= drawn * variants
        step, scored, last = step + len(rows) // 4, scored + figures["scored"], rows
    assert scored <= scored_rows(of, 6)


def test_the_highest_scores_are_taken_in_the_plain_order(data):
    of = stage({"by": "divergence", "candidates": 2, "rounds": 3})
    made, read = Rounds(of, data, 6, 5), MadeUp()
    for step in (0, 2, 4):
        made.draw(step, read)
        candidates = visit_order(stage(), data, 48, 5)[8 * step : 8 * step + 16]
        found = read(data, candidates)
        means = (found["divergence"] / found["tokens"]).tolist()
        best = sorted(range(16), key=lambda i: -means[i])[:8]
        assert made.left(step) == [candidates[i] for i in sorted(best)]


def test_the_variant_with_the_highest_score_is_visited(data):
    of = stage({"by": "divergence", "variants": 4, "rounds": 3})
    made, read = Rounds(of, data, 6, 5), MadeUp()
    made.draw(0, read)
    plain = order(len(data), 8, 5)
    means = {row: (f := read(data, [row]))["divergence"].item() / f["tokens"].item() for row in read.asked[0]}
    assert made.left(0) == [max(range(row, 4 * len(data), len(data)), key=means.__getitem__) for row in plain]


def test_rows_with_the_largest_lag_come_back(data):
    of = stage({"by": "lag", "again": True, "rounds": 3})
    made, read = Rounds(of, data, 6, 5), MadeUp()
    first = (made.draw(0, read), made.left(0))[1]
    figures = made.draw(2, read)
    pool = [*first, *order(len(data), 16, 5)[8:]]
    found = read(data, pool)
    lag = dict(zip(pool, ((found["student_loss"] - found["teacher_loss"]) / found["tokens"]).tolist(), strict=True))
    assert set(made.left(2)) == set(sorted(lag, key=lambda row: -lag[row])[:8])
    assert figures["again"] == pytest.approx(len(set(made.left(2)) & set(first)) / 8) and figures["again"] > 0
    assert figures["never"] == len(data) - len({*first, *made.left(2)})


def test_a_reading_that_is_stopped_leaves_the_state_as_it_was(data):
    """A stop signal may come meanwhile: what is saved then draws the same round again."""
    made = Rounds(stage({"by": "divergence", "candidates": 2, "rounds": 3}), data, 6, 5)
    made.draw(0, MadeUp())
    before = tree_map(lambda of: of.clone() if torch.is_tensor(of) else of, made.state_dict())

    def stopped(data, rows):
        raise Left

    with pytest.raises(Left):
        made.draw(2, stopped)
    after = made.state_dict()["rounds"]
    assert all(torch.equal(torch.as_tensor(of), torch.as_tensor(after[k])) for k, of in before["rounds"].items())


@pytest.fixture
def mixture(tmp_path):
    model = tiny.model()
    pictured = [row for row in tiny.rows(tmp_path) if "image" in row]
    texts = [tiny.row(f"t{i}", None, ("Say hi.", "hi there " + "a dog " * i)) for i in range(5)]
    sets = {
        name: tiny.conversations(model, tmp_path, which=of) for name, of in (("pictured", pictured), ("texts", texts))
    }
    return split(stage(DDK, data=MIXED), sets)[0]


def test_held_out_rows_of_each_set_are_not_trained_on(mixture):
    for part, held_out in zip(mixture.parts, mixture.held_out.parts, strict=True):
        assert len(held_out) == 1 and not set(part.chosen) & set(held_out.chosen)
        assert len(part) + len(held_out) == len(part.rows)


def test_weights_of_a_round_follow_from_the_sets_mean_losses(mixture):
    made, read = Rounds(stage(DDK, data=MIXED), mixture, 6, 1), MadeUp()
    figures = made.draw(0, read)
    found = read(None, [0, 1])
    expected = mixers.ddk(
        double(0.5, 0.5), *(found[name] / found["tokens"] for name in ("student_loss", "teacher_loss"))
    )
    assert [figures["weight/pictured"], figures["weight/texts"]] == expected.tolist()
    again = made.draw(2, read)
    expected = mixers.ddk(expected, *(found[name] / found["tokens"] for name in ("student_loss", "teacher_loss")))
    assert [again["weight/pictured"], again["weight/texts"]] == expected.tolist()


def test_over_many_short_rounds_each_set_gets_what_its_weights_add_up_to():
    """A set whose share of a round is less than one row is not forgotten."""
    shares, before, visited = (0.9, 0.1), [(0, 0.0), (0, 0.0)], []
    for _ in range(50):
        rows = mixed_order((40, 7), shares, 4, 3, before)
        visited += rows
        second = sum(row >= 40 for row in rows)
        new = (4 - second, second)
        before = [(had + n, ahead + n - 4 * share) for (had, ahead), n, share in zip(before, new, shares, strict=True)]
    pictured, texts = ([row - first for row in visited if first <= row < end] for first, end in ((0, 40), (40, 47)))
    assert pictured == order(40, 180, 3) and texts == order(7, 20, 3 + 2**32)


# --- training in rounds


def loop(folder, of, lines):
    student = tiny.model(seed=1)
    student.model.model.language_model.layers[0].self_attn.attention_dropout = 0.2  # draws random numbers
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.tokenizer))
    rows = tiny.rows(folder)
    texts = [tiny.row(f"t{i}", None, ("Say hi.", "hi there " + "a dog " * i)) for i in range(5)]
    sets = {"rows": rows + texts, "pictured": rows, "texts": texts}
    train_on, _ = split(of, {name: tiny.conversations(student, folder, which=each) for name, each in sets.items()})
    return Loop(of, paths, train_on, seed=3, precision="fp32", log=lines.append)


def traced(lines):
    return [{key: value for key, value in line.items() if key not in OURS_ALONE} for line in lines]


class Left(Exception):
    pass


@pytest.mark.parametrize(
    ("mixer", "at"),
    [
        ({"by": "lag", "again": True, "rounds": 2}, 2),  # between two rounds
        ({"by": "divergence", "variants": 2, "rounds": 2}, 3),
        ({"by": "k_centre", "candidates": 2, "rounds": 2}, 1),
        (DDK | {"rounds": 2}, 3),
    ],
    ids=["lag", "variants", "k_centre", "ddk"],
)
def test_a_stage_in_rounds_resumes_bit_equal(tmp_path, mixer, at):
    of = stage(mixer, data=MIXED if mixer["by"] == "ddk" else "rows", steps=4)
    lines, again = [], []
    whole = loop(tmp_path, of, lines)
    whole.run()
    first = loop(tmp_path, of, again)

    def leave():
        if first.step == at:
            (tmp_path / "state").mkdir()
            write_state(first.state_dict(), tmp_path / "state")
            raise Left

    first._save_or_stop = leave
    with pytest.raises(Left):
        first.run()
    second = loop(tmp_path, of, again)
    second.load_state_dict(read_state(tmp_path / "state"))
    second.run()
    assert traced(again) == traced(lines)
    assert [line["step"] for line in lines if "step" in line] == [1, 2, 3, 4]
    rounds = [line for line in lines if line.get("event") == "round"]
    assert [line["after"] for line in rounds] == [0, 2]
    weights = whole.trainer.paths.parameters(), second.trainer.paths.parameters()
    assert all(torch.equal(p, q) for p, q in zip(*weights, strict=True))


def test_without_a_mixer_there_is_one_round_in_the_plain_order(tmp_path):
    lines = []
    made = loop(tmp_path, stage(), lines)
    assert made.rounds.left(0) == order(9, 24, 3) and "rounds" not in made.state_dict()
    made.run()
    assert not [line for line in lines if line.get("event") == "round"]


def test_rows_are_read_in_the_same_order_however_many_processes(tmp_path):
    """Two processes, one after the other here, each compute every second micro-batch."""
    made = loop(tmp_path, stage({"by": "divergence", "candidates": 2, "rounds": 3}), [])
    rows, halves = [4, 0, 7, 2, 2, 8, 1], {}
    expected = made._read(made.data, rows)
    assert all(len(of) == 7 for of in expected.values())

    class Two:
        count, rank = 2, 0

        def gather(self, value):
            if not isinstance(value, list):
                return [value]
            halves[self.rank] = value
            return [halves[0], halves.get(1, value)]

    made.processes = two = Two()
    for two.rank in (0, 1):
        found = made._read(made.data, rows)
    assert len(halves[0]) == len(halves[1]) == 2
    assert all(torch.equal(found[name], of) for name, of in expected.items())


def test_what_is_read_is_the_mean_over_an_answer_s_tokens(tmp_path):
    made = loop(tmp_path, stage({"by": "k_centre", "candidates": 2, "rounds": 3}), [])
    paths, example = made.trainer.paths.eval(), made.data[2]
    batch = tiny.together(paths.student, [example])
    keep = batch.predicting("answer")
    with torch.no_grad():
        logits = paths(batch, ("student", "teacher"), keep)
    student, teacher = (logits[path].double().log_softmax(-1) for path in ("student", "teacher"))
    targets = batch.targets[keep]
    expected = {
        "tokens": torch.tensor(float(len(targets))),
        "student_loss": -student[range(len(targets)), targets].sum(),
        "teacher_loss": -teacher[range(len(targets)), targets].sum(),
        "divergence": (teacher.exp() * (teacher - student)).sum(),
        "confidence": ((student.exp() + teacher.exp()) / 2).amax(-1).sum(),
        "teacher_distribution": sketched(teacher.exp()).sum(0),
    }
    made.rounds.signature = replace(made.rounds.signature, positional=dict.fromkeys(expected))
    found = made._read(made.data, [0, 2, 5])
    for name, value in expected.items():
        assert torch.allclose(found[name][1], value.double(), rtol=1e-4, atol=1e-6), name


def test_a_variant_changes_pixels_alone_and_always_alike(data):
    variants = Variants(data, 0.1, seed=4)
    assert variants[2] is data[2]
    one, again = variants[2 + len(data)], variants[2 + len(data)]
    assert torch.equal(one.input_ids, data[2].input_ids) and torch.equal(one.labels, data[2].labels)
    ((pixels, same, plain),) = [[e.images[0]["pixel_values"] for e in (one, again, data[2])]]
    assert torch.equal(pixels, same) and not torch.equal(pixels, plain)
    slope = (pixels - pixels.mean()) / (plain - plain.mean())
    assert torch.allclose(slope, slope.mean(), rtol=1e-3) and 0.5 < slope.mean() < 1.5


# --- what a recipe may say


@pytest.mark.parametrize(
    ("mixer", "problem"),
    [
        ({"by": "divergance", "rounds": 2}, "mixer.by: unknown mixer, got 'divergance' (did you mean 'divergence'?)"),
        ({"by": "divergence", "rounds": 2}, "mixer: divergence has nothing to choose from"),
        ({"by": "divergence", "rounds": 2, "candidates": 1}, "mixer: divergence has nothing to choose from"),
        ({"by": "divergence", "rounds": 2, "candidates": 2, "strength": 0.5}, "mixer.strength: is that of variants"),
        ({"by": "ddk", "rounds": 2, "again": True}, "mixer.again: ddk sets weights: leave it out, got True"),
        ({"by": "ddk", "rounds": 2}, "mixer.by: ddk sets weights: the stage needs a mixture, got data 'rows'"),
        ({"by": "lag", "rounds": 2, "again": True, "rows": 9}, "mixer.rows: lag chooses rows: leave it out, got 9"),
        ({"by": "ddk", "rounds": 2, "parameters": {"smooth": 1.0}}, "ddk takes no such parameter, got 'smooth'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, mixer, problem):
    with pytest.raises(UserError) as caught:
        load(tiny_run.write(tmp_path, distill={"mixer": mixer}))
    assert any(f"stages.distill.{problem}" in text or problem in text for text in caught.value.problems)


def test_a_mixer_needs_a_teacher(tmp_path):
    with pytest.raises(UserError, match="the recipe has no teacher to compare the student with, got 'lag'"):
        load(tiny_run.write(tmp_path, teacher=False, distill={"mixer": {"by": "lag", "rounds": 2, "again": True}}))
