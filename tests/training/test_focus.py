"""Focus: weights of a term's positions by a score, which change where the loss is looked for and not how much it counts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from switchkd_cli import registry
from switchkd_cli.engine.batch import collate
from switchkd_cli.engine.losses import focus as scores
from switchkd_cli.engine.losses.focus import weights
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.chunked import ChunkedObjective
from switchkd_cli.engine.training.diagnostics import Diagnostics
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.recipe.schema import Focus, Term
from switchkd_cli.recipe.validate import check
from tests.support import reference_losses as reference
from tests.support import tiny

ALIGN = {"name": "align", "loss": "forward_kl", "to": "teacher"}
VSD = {"name": "vsd", "loss": "forward_kl", "of": "switch", "to": "teacher"}
SCORES = [name for name in registry.REGISTRIES["focus"] if name != "visual_dependence"]  # which needs a path `blind`


@pytest.fixture(scope="module")
def paths():
    student = tiny.model(seed=1)
    return Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer) - 3)


@pytest.fixture(scope="module")
def examples(paths, tmp_path_factory):
    data = tiny.conversations(paths.student, tmp_path_factory.mktemp("rows"))
    return [data[i] for i in range(len(data))]


def focused(term, **focus):
    return Term.model_validate(term | ({"focus": focus} if focus else {}))


def parts(paths, examples, terms, *, micro_batch=4, dense=False, on_values=None, look=None):
    """The parts of a step in micro-batches of these examples, and the gradients."""
    objective, pad = Objective(terms), paths.student.inputs.processor.tokenizer.pad_token_id
    way = ChunkedObjective(objective, dense=dense)
    batches = [collate(examples[i : i + micro_batch], pad_token=pad) for i in range(0, len(examples), micro_batch)]
    counts, found = objective.counts(batches), {}
    paths.zero_grad()
    for batch in batches:
        keep = objective.keep(batch)
        inputs = LossInputs(paths(batch, way.outputs, keep), paths.heads(), batch, keep, counts)
        total, of_batch = way(inputs, look, on_values)
        total.backward()
        found |= {name: found.get(name, 0) + value.detach() for name, value in of_batch.items()}
    return found, {name: p.grad.clone() for name, p in paths.named_parameters() if p.grad is not None}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 9), min_size=1, max_size=12),
    st.one_of(st.none(), st.floats(0.05, 1)),
    st.floats(0.05, 1),
    st.integers(0, 3),
)
def test_weights_are_those_of_the_formula_sum_to_the_number_and_rise_with_the_score(values, share, mass, others):
    mass = max(mass, share or 0.0)
    score = torch.tensor([*values, *range(others)], dtype=torch.float32)
    rows = torch.tensor([4] * len(values) + [7] * others)
    found = weights(score, rows, share=share, mass=mass)
    of_rows = [list(map(float, values)), list(map(float, range(others)))]
    expected = [weight for of_row in filter(None, of_rows) for weight in reference.focus_weights(of_row, share, mass)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    own = found[: len(values)]
    assert (found >= 0).all()
    if share is not None or max(values) > 0:
        assert float(own.sum()) == pytest.approx(len(values), rel=1e-6)
    else:
        assert not own.any()
    order = score[: len(values)].argsort()
    assert (own[order].diff() >= -1e-6).all()


def test_equal_scores_have_equal_weights_and_all_of_an_example_count_alike_where_a_score_says_nothing():
    rows = torch.tensor([0, 0, 0, 0, 1, 1])
    found = weights(torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0, 1e-9]), rows, share=0.5, mass=0.75)
    assert found.tolist() == pytest.approx([1.5, 5 / 6, 5 / 6, 5 / 6, 1.0, 1.0])


def test_examples_are_ranked_by_their_means_and_all_positions_of_one_have_one_weight():
    scores, rows = torch.tensor([9.0, 1.0, 1.0, 4.0, 4.0, 0.0]), torch.tensor([0, 0, 0, 2, 2, 3])
    found = weights(scores, rows, share=0.3, mass=0.75, of_examples=True)  # means 11/3, 4, 0
    assert found.tolist() == pytest.approx([0.375] * 3 + [2.25] * 2 + [0.375])
    gates = weights(scores, rows, share=None, of_examples=True)
    assert gates.tolist() == pytest.approx([6 * (11 / 3) / 19] * 3 + [6 * 4 / 19] * 2 + [0])


def test_a_score_that_is_no_number_is_seen_at_its_position_alone():
    scores, rows = torch.tensor([1.0, math.nan, 2.0, 4.0]), torch.tensor([0, 0, 1, 1])
    for share in (None, 0.5):
        for of_examples in (False, True):
            found = weights(scores, rows, share=share, of_examples=of_examples)
            assert found.isnan().tolist() == [False, True, False, False]


def test_scores_are_their_formulas():
    teacher, other = (logits.double() for logits in reference.language_logits(5, 11, seed=0))
    targets = torch.tensor([int(teacher[0].argmax()), 3, 4, int(teacher[3].argmin()), 0])
    p, q = teacher.softmax(-1), other.softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    gap = (p * (p / q).log()).sum(-1)
    right = torch.tensor([float(row.argmax() == target) for row, target in zip(teacher, targets, strict=True)])
    p_y, q_y = (of[range(5), targets] for of in (p, q))
    ahead = (1 - q_y) / (2 - q_y - p_y) * (p - q).square().sum(-1).sqrt() / 2**0.5
    for name in ("switch_gap", "student_gap", "visual_dependence"):
        torch.testing.assert_close(getattr(scores, name)(teacher, other), gap)
    torch.testing.assert_close(scores.teacher_entropy(teacher), entropy)
    torch.testing.assert_close(scores.teacher_confidence(teacher), (-entropy / math.log(11)).exp(), check_dtype=False)
    torch.testing.assert_close(scores.teacher_right(teacher, targets), right)
    torch.testing.assert_close(scores.teacher_ahead(teacher, other, targets), ahead)
    padded = torch.nn.functional.pad(teacher, (0, 3), value=-torch.inf)
    torch.testing.assert_close(scores.teacher_entropy(padded), entropy)
    torch.testing.assert_close(scores.teacher_confidence(padded), scores.teacher_confidence(teacher))


@pytest.mark.parametrize("of", ["positions", "examples"])
def test_share_1_is_bit_equal_to_no_focus_and_computes_nothing(paths, examples, of):
    whole = focused(ALIGN, by="switch_gap", share=1.0, of=of)
    assert whole.paths == {"student", "teacher"}
    assert Objective([whole]).outputs == Objective([focused(ALIGN)]).outputs
    plain, same = (parts(paths, examples, [term]) for term in (focused(ALIGN), whole))
    assert torch.equal(plain[0]["align"], same[0]["align"])
    assert all(torch.equal(plain[1][name], same[1][name]) for name in plain[1])


def test_switch_gap_costs_vsd_no_path_and_other_terms_the_one_it_names():
    assert Objective([focused(VSD, by="switch_gap", share=0.2)]).outputs == Objective([focused(VSD)]).outputs
    align = focused(ALIGN, by="switch_gap", share=0.2)
    assert Objective([align]).outputs == {"student", "teacher", "switch"} == align.paths


@pytest.mark.parametrize("by", SCORES)
def test_no_score_changes_how_much_an_example_counts(paths, examples, by):
    """A loss of 1 everywhere stays what it is: the weights of a term's positions sum to their number."""
    seen = []
    term = focused(VSD, by=by, share=0.3, mass=0.8)
    parts(paths, examples, [term], on_values=lambda name, values, rows, weights: seen.append((rows, weights)))
    ((rows, found),) = seen
    for row in rows.unique():
        assert float(found[rows == row].sum()) == pytest.approx(int((rows == row).sum()), rel=1e-6)
    assert found.max() > 1


@pytest.mark.parametrize(
    "focus",
    [{"share": 0.3}, {"share": 0.2, "mass": 1.0}, {}, {"share": 0.5, "of": "examples"}, {"of": "examples"}],
    ids=["share", "all mass", "gate", "examples", "gate of examples"],
)
def test_chunks_have_the_dense_values_and_gradients(paths, examples, focus, monkeypatch):
    terms = [focused(ALIGN, by="switch_gap", **focus), focused(VSD), focused({"loss": "cross_entropy"})]
    dense = parts(paths, examples, terms, dense=True)
    monkeypatch.setattr("switchkd_cli.engine.lm_head.LOGITS", 3 * paths.vocabulary)
    chunked = parts(paths, examples, terms)
    torch.testing.assert_close(chunked, dense, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.3, None])
def test_no_split_into_micro_batches_changes_a_focus_on_positions(paths, examples, share):
    terms = [focused(ALIGN, by="switch_gap", share=share), focused(VSD, by="teacher_entropy", share=share)]
    whole, parted = (parts(paths, examples, terms, micro_batch=size) for size in (4, 1))
    torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-6)


def test_a_path_that_only_a_score_names_learns_nothing(paths, examples):
    term = focused({"loss": "cross_entropy"}, by="switch_gap", share=0.3)
    assert "switch" in Objective([term]).outputs
    _, gradients = parts(paths, examples, [term])
    weights = []
    note = lambda name, values, rows, of: weights.append(of)
    parts(paths, examples, [term], on_values=note)
    # the same gradient as of these weights as constants
    objective = Objective([focused({"loss": "cross_entropy"})])
    paths.zero_grad()
    batch = collate(examples, pad_token=paths.student.inputs.processor.tokenizer.pad_token_id)
    keep = objective.keep(batch)
    logits = paths(batch, {"student"}, keep)["student"]
    values = torch.nn.functional.cross_entropy(logits, batch.targets[keep], reduction="none")
    ((weights[0] * values).sum() / keep.sum()).backward()
    for name, parameter in paths.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_where_the_teacher_is_wrong_the_weight_is_0_and_that_is_shown(paths, examples):
    term, seen = focused(ALIGN, by="teacher_right"), {}
    diagnosis = Diagnostics([term])

    def note(name, values, rows, weights):
        seen.update(values=values, rows=rows, weights=weights)
        diagnosis.add_values(name, values, rows, weights)

    logits = {}
    found, _ = parts(paths, examples, [term], on_values=note, look=lambda z, batch, keep: logits.update(z, batch=batch))
    batch = logits.pop("batch")
    right = logits["teacher"].argmax(-1) == batch.targets[batch.predicting("answer")]
    assert 0 < right.sum() < len(right)
    assert not seen["weights"][~right].any()
    for row in seen["rows"].unique():
        mine = (seen["rows"] == row) & right
        assert seen["weights"][mine].tolist() == pytest.approx(
            [int((seen["rows"] == row).sum()) / max(1, int(mine.sum()))] * int(mine.sum())
        )
    assert float(found["align"]) == pytest.approx(float((seen["weights"] * seen["values"]).mean()), rel=1e-5)
    figures = diagnosis.figures()
    assert figures["focus/align/zero"] == pytest.approx(float((~right).float().mean()))
    assert figures["focus/align/even"] == pytest.approx(float(seen["values"].mean()))


GAP = {"by": "switch_gap"}
WRONG = {
    "unknown focus, got 'switch_gp' (did you mean 'switch_gap'?)": ALIGN | {"focus": {"by": "switch_gp"}},
    "would get less than without a focus: 0.6 or more, got 0.5": ALIGN | {"focus": GAP | {"share": 0.6}},
    "is that of a `share` of the positions": ALIGN | {"focus": GAP | {"mass": 0.9}},
    "weights positions of logits, and token_mse compares tokens": {"loss": "token_mse", "to": "teacher", "focus": GAP},
    "switch_gap takes no such parameter, got 't'": ALIGN | {"focus": GAP | {"parameters": {"t": 1}}},
    "the recipe has no teacher, got 'switch_gap'": {"loss": "cross_entropy", "focus": GAP},
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_no_focus_can_be_is_said(problem):
    stage = {"name": "distill", "train": ["vision"], "objective": [WRONG[problem]]}
    teacher = {} if "no teacher" in problem else {"teacher": {"checkpoint": "t"}}
    problems = [text for path, text in check({"stages": [stage], **teacher}) if "focus" in path]
    assert len(problems) == 1 and problem in problems[0]


def test_a_focus_of_the_defaults_leaves_keys_as_they_were():
    assert "focus" not in focused(ALIGN).model_dump()
    assert focused(ALIGN, by="switch_gap").focus == Focus(by="switch_gap", share=None, mass=0.5, of="positions")
