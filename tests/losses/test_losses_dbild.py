"""DBiLD and BiLD: the knee, the leaders, whose probabilities are weights, exactness at any k, memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kneed import KneeLocator

from switchkd_cli import registry
from switchkd_cli.engine.losses.dbild import bild, dbild, dbild_student_led, dbild_teacher_led
from switchkd_cli.engine.losses.ops import leaders, pairwise_kl
from switchkd_cli.engine.losses.ops.knee import knee_rank
from tests.support import reference_losses as reference
from tests.support.reference_losses import expected, language_logits, value_and_gradient
from tests.support.registered_losses import effective_k

QWEN = 151_936
ONE_SIDED = (dbild_teacher_led, dbild_student_led)


def convex_rows(seed, columns=400):
    generator = torch.Generator().manual_seed(seed)
    decay = torch.rand(3, 1, generator=generator, dtype=torch.float64) * 0.1 + 0.005
    return 20 * torch.exp(-decay * torch.arange(columns, dtype=torch.float64))


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("seed", range(5))
def test_knee_is_where_the_kneed_package_sees_the_largest_difference(seed, window):
    rows = convex_rows(seed)
    for row, rank in zip(rows[:, :window], knee_rank(rows, window), strict=True):
        located = KneeLocator(np.arange(len(row)), row.numpy(), curve="convex", direction="decreasing")
        assert rank == int(np.argmax(located.y_difference))
        assert rank == located.knee


@given(seed=st.integers(0, 10**6), columns=st.integers(1, 50), window=st.none() | st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_knee_is_the_largest_gap_below_the_anti_diagonal(seed, columns, window):
    rows = language_logits(3, columns, seed)[0].sort(-1, descending=True).values
    assert knee_rank(rows, window).tolist() == [reference.knee(row[:window]) for row in rows.tolist()]


def test_a_steeper_curve_has_a_smaller_k():
    ranks = torch.arange(1000.0)
    gentle, steep = 20 * torch.exp(-0.005 * ranks), 20 * torch.exp(-0.1 * ranks)
    k = effective_k(torch.stack([gentle, steep]))
    assert k[1] < k[0]


def test_the_first_of_equal_knees_counts():
    # ranks 1 and 2 of 0 ... 4 both lie 1/4 below the anti-diagonal
    assert knee_rank(torch.tensor([[8.0, 4.0, 2.0, 2.0, 0.0]])).tolist() == [1]


def test_flat_rows_have_no_knee():
    assert knee_rank(torch.full((2, 9), 7.0)).tolist() == [0, 0]
    assert effective_k(torch.full((2, 9), 7.0)).tolist() == [3, 3]


@pytest.mark.parametrize("padding", [-torch.inf, torch.finfo(torch.float32).min])
def test_padding_does_not_move_the_knee(padding):
    logits = language_logits(5, 3000, seed=1, dtype=torch.float32)[0]
    padded = torch.cat([torch.full((5, 7), padding), logits, torch.full((5, 300), padding)], dim=1)
    assert effective_k(padded).tolist() == effective_k(logits).tolist()


def test_k_is_bounded_by_min_max_and_the_columns_there_are():
    logits = language_logits(8, 500, seed=2)[0]
    free = effective_k(logits)
    assert len(set(free.tolist())) > 1, "rows must have knees of their own"
    assert effective_k(logits, max_k=10).tolist() == free.clamp(max=10).tolist()
    assert effective_k(logits, min_k=90).tolist() == free.clamp(min=90).tolist()
    assert effective_k(logits[:, :2]).tolist() == [2] * 8
    assert (effective_k(logits, window=20) <= 20).all()


def test_dbild_and_bild_at_the_same_k_differ_only_in_the_weight():
    teacher, student = language_logits(4, 50, seed=3)
    fixed = dbild(teacher, student, min_k=8, max_k=8)
    torch.testing.assert_close(fixed, bild(student, teacher, k=8), rtol=1e-12, atol=0)
    assert ((fixed - bild(teacher, student, k=8)).abs() > 1e-6).all()


def test_both_models_lead_with_a_k_of_their_own():
    steep = torch.tensor([9.0, 4.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    gentle = torch.tensor([1.0, 1.1, 7.0, 5.0, 9.0, 6.0, 8.0, 1.2], dtype=torch.float64)
    k_steep, k_gentle = effective_k(torch.stack([steep, gentle])).tolist()
    assert k_steep != k_gentle
    by_teacher = reference.led_side(steep, gentle, steep, k_steep, 3.0)
    by_student = reference.led_side(gentle, gentle, steep, k_gentle, 3.0)
    torch.testing.assert_close(dbild(steep[None], gentle[None])[0], by_teacher + by_student)


@given(seed=st.integers(0, 10**6), columns=st.integers(4, 80), k=st.none() | st.integers(3, 20))
@settings(max_examples=40, deadline=None)
def test_the_two_sides_add_up_to_the_whole(seed, columns, k):
    teacher, student = language_logits(3, columns, seed)
    bounds = {"temperature": 2.0} | ({} if k is None else {"min_k": k, "max_k": k})
    whole, gradient = value_and_gradient(dbild, teacher, student, **bounds)
    sides = [value_and_gradient(loss, teacher, student, **bounds) for loss in ONE_SIDED]
    torch.testing.assert_close(sides[0][0] + sides[1][0], whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sides[0][1] + sides[1][1], gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dbild_forward", {"divergence": "forward"}),
        ("dbild_teacher_led", {"leaders": "teacher"}),
        ("dbild_student_led", {"leaders": "student"}),
    ],
)
def test_variants_are_parameters_of_one_loss(name, parameters):
    pair = language_logits(3, 60, seed=8)
    ours, named = value_and_gradient(dbild, *pair, **parameters), expected(name, *pair)
    torch.testing.assert_close(ours, named, rtol=1e-9, atol=1e-12)
    again = value_and_gradient(registry.resolve("loss", name), *pair)
    assert all(torch.equal(one, other) for one, other in zip(ours, again, strict=True))


@pytest.mark.parametrize("leads", [0, 1], ids=["teacher", "student"])
def test_one_side_sees_only_its_leader_s_ids(leads):
    pair = language_logits(1, 200, seed=5)
    _, gradient = value_and_gradient(ONE_SIDED[leads], *pair, min_k=6, max_k=6)
    assert set(gradient[0].nonzero().flatten().tolist()) == set(pair[leads][0].topk(6).indices.tolist())


def test_one_side_misses_what_only_the_other_shows():
    """The student is sure of an id that the teacher ranks last: only its own top ids show it."""
    teacher = language_logits(1, 200, seed=5)[0]
    student = teacher.clone()
    student[0, teacher.argmin()] = 50.0
    assert dbild_teacher_led(teacher, student, max_k=8).item() == 0
    assert dbild_student_led(teacher, student, max_k=8).item() > 0.1
    assert dbild_teacher_led(student, teacher, max_k=8).item() > 0.1
    assert dbild_student_led(student, teacher, max_k=8).item() == 0


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("loss", ONE_SIDED)
def test_one_side_does_not_hide_a_broken_logit_of_either_model(loss, broken):
    for model in (0, 1):
        pair = language_logits(2, 200, seed=5)
        pair[model][1, pair[1 - model][1].argmin()] = broken
        value = loss(*pair, max_k=8)
        assert value[0].isfinite() and value[1].isnan()


def test_two_ids_teach_nothing():
    teacher, student = language_logits(4, 50, seed=4)
    value, gradient = value_and_gradient(dbild, teacher, student, min_k=1, max_k=2)
    assert value.abs().max() == 0
    assert gradient.abs().max() == 0


def test_ties_keep_the_order_of_the_ids():
    teacher = torch.tensor([[2.0, 5.0, 2.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    student = torch.arange(6, dtype=torch.float64)[None]
    value, gradient = value_and_gradient(bild, teacher, student, k=3)
    value_expected, gradient_expected = expected("bild", teacher, student, k=3)
    torch.testing.assert_close(value, value_expected)
    torch.testing.assert_close(gradient, gradient_expected)


def test_only_the_columns_of_a_top_k_get_a_gradient():
    teacher, student = language_logits(1, 200, seed=5)
    _, gradient = value_and_gradient(bild, teacher, student, k=6)
    led = {*teacher[0].topk(6).indices.tolist(), *student[0].topk(6).indices.tolist()}
    assert set(gradient[0].nonzero().flatten().tolist()) == led


def test_descending_the_gradient_brings_the_student_to_the_teacher():
    teacher, student = language_logits(2, 40, seed=6)
    student = student.clone().requires_grad_()
    before = dbild(teacher, student).sum().item()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(dbild(teacher, student, temperature=1.0).sum(), student)
        student = (student - 2 * gradient).detach().requires_grad_()
    assert dbild(teacher, student).sum().item() < before / 10


@pytest.mark.parametrize("k", [2, 3, 64, 1024])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_linear_form_is_exact_at_any_k(k, scale):
    teacher, student = (scale * z for z in language_logits(2, 1500, seed=k))
    value, gradient = value_and_gradient(dbild, teacher, student, min_k=k, max_k=k)
    value_expected, gradient_expected = expected("dbild", teacher, student, min_k=k, max_k=k)
    torch.testing.assert_close(value, value_expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-9, atol=1e-9)


def test_rows_of_different_k_are_exact_side_by_side():
    rows = [language_logits(1, 600, seed=7)[0] * 0, *(language_logits(1, 600, seed=s)[0] for s in (8, 9))]
    teacher = torch.cat([*rows, convex_rows(1, 600)])
    student = teacher + language_logits(6, 600, seed=10)[0]
    assert len(set(effective_k(teacher).tolist())) >= 4
    value, gradient = value_and_gradient(dbild, teacher, student)
    value_expected, gradient_expected = expected("dbild", teacher, student)
    torch.testing.assert_close(value, value_expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-9, atol=1e-9)


def test_blocks_of_rows_do_not_change_the_loss(monkeypatch):
    teacher, student = language_logits(7, 100, seed=11)
    value, gradient = value_and_gradient(dbild, teacher, student)
    monkeypatch.setattr(leaders, "BLOCK", 250)  # two rows at a time
    value_blocked, gradient_blocked = value_and_gradient(dbild, teacher, student)
    torch.testing.assert_close(value_blocked, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient_blocked, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", [dbild, bild])
@pytest.mark.parametrize("present", [0, 1])
def test_without_a_pair_of_columns_there_is_no_loss(loss, present):
    teacher, student = language_logits(2, 30, seed=14)
    teacher[:, present:] = -torch.inf
    value, gradient = value_and_gradient(loss, teacher, student)
    assert value.tolist() == [0, 0]
    assert (gradient == 0).all()


def test_autograd_keeps_float32_logits_of_the_top_k_only():
    teacher, student = language_logits(4, 20_000, seed=12, dtype=torch.float32)
    student.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: kept.append(z) or z, lambda z: z):
        dbild(teacher, student, max_k=64)
    assert max(z.shape[-1] for z in kept if z.dim()) == 64
    # what lies behind the views counts too: whole rows of sorted ids are 16 bytes a logit
    assert max(z.untyped_storage().nbytes() for z in kept) == 4 * 64 * 8
    assert {z.dtype for z in kept} == {torch.float32, torch.int64}


@pytest.mark.parametrize("loss", [dbild, bild])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_way_of_wide_rows_agrees_with_the_usual_one(loss, scale, monkeypatch):
    teacher, student = (scale * z for z in language_logits(6, 400, seed=15))
    value, gradient = value_and_gradient(loss, teacher, student)
    monkeypatch.setattr(pairwise_kl, "MAX_SPREAD", -1.0)
    by_logs, gradient_by_logs = value_and_gradient(loss, teacher, student)
    torch.testing.assert_close(value, by_logs, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(gradient, gradient_by_logs, rtol=1e-9, atol=1e-13)


def test_global_knee_of_a_large_vocabulary_is_exact():
    """V = 151,936 with the knee of the whole row: thousands of ids, millions of pairs."""
    teacher, student = peaked_logits(seed=13)
    k = effective_k(teacher)
    assert 1500 < k.item() < 9000
    value, gradient = value_and_gradient(dbild, teacher, student)
    value_expected, gradient_expected = expected("dbild", teacher, student)
    torch.testing.assert_close(value, value_expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-9, atol=1e-9)
    single, _ = value_and_gradient(dbild, teacher.float(), student.float())
    torch.testing.assert_close(single.double(), value, rtol=1e-4, atol=1e-6)


def peaked_logits(seed):
    """One row of a large language model's width: a Gaussian bulk and a few hundred ids that stand out."""
    generator = torch.Generator().manual_seed(seed)
    bulk = 2.2 * torch.randn(1, QWEN, generator=generator, dtype=torch.float64)
    bulk[0, :300] += torch.linspace(28, 4, 300, dtype=torch.float64)
    return bulk, bulk + 0.5 * torch.randn(1, QWEN, generator=generator, dtype=torch.float64)
