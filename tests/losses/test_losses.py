"""Every loss against its explicit float64 formula, and the properties that they share."""

import ast
import inspect
import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from switchkd_cli import registry
from tests.support.reference_losses import expected, language_logits, value_and_gradient
from tests.support.registered_losses import losses

PAIRWISE = ["dbild", "dbild_forward", "bild"]
ONE_SIDED = ["dbild_teacher_led", "dbild_student_led"]  # blind beyond their leader's top k
OVER_ALL = ["forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "skewed_reverse_kl"]
DIVERGENCES = [*OVER_ALL, "knee_kl", *PAIRWISE, *ONE_SIDED]
VARIANTS = [
    ("forward_kl", {}),
    ("forward_kl", {"temperature": 2.5}),
    ("reverse_kl", {}),
    ("reverse_kl", {"temperature": 2.5}),
    ("jensen_shannon", {}),
    ("jensen_shannon", {"beta": 0.1, "temperature": 2.0}),
    ("skewed_kl", {}),
    ("skewed_kl", {"alpha": 0.6, "temperature": 2.0}),
    ("skewed_reverse_kl", {}),
    ("skewed_reverse_kl", {"alpha": 0.6, "temperature": 2.0}),
    ("bild", {}),
    ("bild", {"k": 40, "temperature": 1.0}),
    ("dbild", {}),
    ("dbild", {"temperature": 1.0}),
    ("dbild", {"window": 20}),
    ("dbild", {"min_k": 12, "max_k": 15}),
    ("dbild_forward", {}),
    ("dbild_forward", {"window": 20, "temperature": 1.0}),
    ("dbild_teacher_led", {}),
    ("dbild_teacher_led", {"window": 20, "temperature": 1.0}),
    ("dbild_teacher_led", {"min_k": 12, "max_k": 15}),
    ("dbild_student_led", {}),
    ("dbild_student_led", {"window": 20, "temperature": 1.0}),
    ("dbild_student_led", {"min_k": 12, "max_k": 15}),
    ("knee_kl", {}),
    ("knee_kl", {"temperature": 1.0, "window": 20}),
    ("knee_kl", {"min_k": 12, "max_k": 15}),
]


logits = st.builds(language_logits, st.integers(1, 4), st.integers(4, 60), st.integers(0, 10**6))
divergences = pytest.mark.parametrize("name", DIVERGENCES)
few = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_equals_the_explicit_formula(name, parameters):
    teacher, student = language_logits(6, 97, seed=1)
    value, gradient = value_and_gradient(getattr(losses, name), teacher, student, **parameters)
    value_expected, gradient_expected = expected(name, teacher, student, **parameters)
    torch.testing.assert_close(value, value_expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_gradient_is_the_slope(name, parameters):
    teacher, student = language_logits(2, 11, seed=2)
    if name == "bild":
        parameters = parameters | {"k": 8}
    assert gradcheck(lambda z: getattr(losses, name)(teacher, z, **parameters), student.requires_grad_())


@divergences
def test_float32_is_as_good_as_its_inputs(name):
    teacher, student = language_logits(6, 2000, seed=3, dtype=torch.float32)
    value, gradient = value_and_gradient(getattr(losses, name), teacher, student)
    value_expected, gradient_expected = expected(name, teacher, student)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), value_expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient.double(), gradient_expected, rtol=1e-4, atol=1e-6)


@divergences
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    teacher, student = language_logits(4, 200, seed=4, dtype=dtype)
    loss = getattr(losses, name)
    value = loss(teacher, student)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(teacher.float(), student.float()), rtol=0, atol=0)


@divergences
@given(pair=logits)
@few
def test_equal_logits_cost_nothing(name, pair):
    value, gradient = value_and_gradient(getattr(losses, name), pair[0], pair[0])
    assert value.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name not in ONE_SIDED])
@given(pair=logits)
@few
def test_other_logits_cost_something(name, pair):
    teacher, student = pair
    assert (getattr(losses, name)(teacher / 10, student / 10) > 1e-6).all()


@divergences
@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-4, 1e-2])
def test_never_negative_in_float32_however_close(name, distance):
    teacher, student = language_logits(8, 3000, seed=5, dtype=torch.float32)
    near = teacher + distance * (student - teacher)
    assert (getattr(losses, name)(teacher, near) >= -1e-6).all()


@divergences
@given(pair=logits, shift=st.floats(-50, 50))
@few
def test_a_constant_added_to_a_row_changes_nothing(name, pair, shift):
    teacher, student = pair
    loss = getattr(losses, name)
    plain = loss(teacher, student)
    torch.testing.assert_close(loss(teacher + shift, student), plain, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(loss(teacher, student + shift), plain, rtol=1e-9, atol=1e-10)


@divergences
@given(pair=logits, seed=st.integers(0, 10**6))
@few
def test_the_order_of_the_vocabulary_is_arbitrary(name, pair, seed):
    teacher, student = pair
    order = torch.randperm(teacher.shape[1], generator=torch.Generator().manual_seed(seed))
    loss = getattr(losses, name)
    value, gradient = value_and_gradient(loss, teacher, student)
    value_moved, gradient_moved = value_and_gradient(loss, teacher[:, order], student[:, order])
    torch.testing.assert_close(value_moved, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient_moved, gradient[:, order], rtol=1e-9, atol=1e-12)


@divergences
def test_the_teacher_gets_no_gradient(name):
    teacher, student = (z.requires_grad_() for z in language_logits(3, 30, seed=6))
    getattr(losses, name)(teacher, student).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@divergences
def test_a_row_does_not_see_its_neighbours(name):
    teacher, student = language_logits(5, 60, seed=7)
    loss = getattr(losses, name)
    alone = torch.cat([loss(teacher[n : n + 1], student[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(loss(teacher, student), alone, rtol=1e-12, atol=1e-14)


@divergences
@pytest.mark.parametrize("padding", [-torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("padded", [("teacher",), ("student",), ("teacher", "student")])
def test_padding_in_either_model_is_as_if_the_columns_were_not_there(name, padding, padded):
    teacher, student = language_logits(4, 70, seed=8, dtype=torch.float32)
    columns = torch.tensor([0, 13, 68, 69])
    kept = torch.ones(70, dtype=torch.bool).index_fill(0, columns, False)
    loss = getattr(losses, name)
    value_without, gradient_without = value_and_gradient(loss, teacher[:, kept], student[:, kept])
    for model, z in {"teacher": teacher, "student": student}.items():
        if model in padded:
            z[:, columns] = padding
    value, gradient = value_and_gradient(loss, teacher, student)
    torch.testing.assert_close(value, value_without)
    torch.testing.assert_close(gradient[:, kept], gradient_without)
    assert (gradient[:, columns] == 0).all()


DEGENERATE = {
    "flat": torch.zeros(1, 40),
    "two levels": torch.cat([torch.ones(1, 5), torch.zeros(1, 35)], dim=1),
    "one peak": torch.zeros(1, 40).index_fill(1, torch.tensor([3]), 1e4),
    "huge range": torch.linspace(-1e4, 1e4, 40)[None],
    "huge range, other way": torch.linspace(1e4, -1e4, 40)[None],
    "mostly padding": torch.full((1, 40), -torch.inf).index_fill(1, torch.tensor([1, 2]), 1.0),
    "one column": torch.full((1, 40), -torch.inf).index_fill(1, torch.tensor([1]), 1.0),
    "no column": torch.full((1, 40), -torch.inf),
}


@divergences
@pytest.mark.parametrize("teacher", DEGENERATE)
@pytest.mark.parametrize("student", DEGENERATE)
def test_degenerate_rows_stay_finite(name, teacher, student):
    value, gradient = value_and_gradient(getattr(losses, name), DEGENERATE[teacher], DEGENERATE[student])
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (value >= -1e-6).all()


@divergences
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_logit_is_not_hidden(name, broken):
    teacher, student = language_logits(2, 30, seed=9)
    student[1, 7] = broken
    value = getattr(losses, name)(teacher, student)
    assert value[0].isfinite()
    assert value[1].isnan()


@divergences
def test_no_rows_no_loss(name):
    student = torch.zeros(0, 12, requires_grad=True)
    value = getattr(losses, name)(torch.zeros(0, 12), student)
    assert value.shape == (0,)
    value.sum().backward()
    assert student.grad.shape == (0, 12)


def test_cross_entropy_is_minus_the_log_probability_of_the_target():
    _, student = language_logits(5, 30, seed=10)
    targets = torch.tensor([0, 3, 29, 3, 7])
    log_p = student.log_softmax(-1)
    torch.testing.assert_close(losses.cross_entropy(targets, student), -log_p[torch.arange(5), targets])
    tempered = (student / 3).log_softmax(-1)[torch.arange(5), targets]
    torch.testing.assert_close(losses.cross_entropy(targets, student, temperature=3.0), -tempered)
    assert losses.cross_entropy(targets, student.bfloat16()).dtype == torch.float32


def test_jensen_shannon_approaches_the_scaled_divergences_at_its_ends():
    teacher, student = language_logits(4, 30, seed=11)
    low = losses.jensen_shannon(teacher, student, beta=1e-7) / 1e-7
    high = losses.jensen_shannon(teacher, student, beta=1 - 1e-7) / 1e-7
    torch.testing.assert_close(low, losses.forward_kl(teacher, student), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(high, losses.reverse_kl(teacher, student), rtol=1e-4, atol=1e-6)


def test_skewed_kl_approaches_forward_kl():
    teacher, student = language_logits(4, 30, seed=11)
    near = losses.skewed_kl(teacher, student, alpha=1e-9)
    torch.testing.assert_close(near, losses.forward_kl(teacher, student), rtol=1e-6, atol=1e-8)


def test_skewed_reverse_kl_is_skewed_kl_with_the_models_exchanged():
    teacher, student = language_logits(4, 30, seed=11)
    exchanged = losses.skewed_kl(student, teacher, alpha=0.3)
    torch.testing.assert_close(losses.skewed_reverse_kl(teacher, student, alpha=0.3), exchanged)


@given(pair=logits, alpha=st.floats(0.01, 0.99))
@few
def test_skewed_reverse_kl_is_bounded_however_wrong_the_student(pair, alpha):
    teacher, student = pair
    value = losses.skewed_reverse_kl(100 * teacher, -100 * student, alpha=alpha)
    assert (value <= -math.log(alpha) + 1e-9).all()


def test_skewed_reverse_kl_approaches_reverse_kl():
    teacher, student = language_logits(4, 30, seed=11)
    near = losses.skewed_reverse_kl(teacher, student, alpha=1e-9)
    torch.testing.assert_close(near, losses.reverse_kl(teacher, student), rtol=1e-6, atol=1e-8)


def test_dbild_forward_with_a_fixed_k_is_bild():
    teacher, student = language_logits(4, 60, seed=12)
    fixed = losses.dbild_forward(teacher, student, min_k=8, max_k=8)
    torch.testing.assert_close(fixed, losses.bild(teacher, student, k=8), rtol=1e-12, atol=1e-14)


def test_knee_kl_over_the_whole_vocabulary_is_reverse_kl_twice():
    teacher, student = language_logits(4, 60, seed=13)
    both_sides = losses.knee_kl(teacher, student, temperature=1.0, min_k=60)
    torch.testing.assert_close(both_sides, 2 * losses.reverse_kl(teacher, student), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["cross_entropy", *DIVERGENCES])
def test_recipe_parameters_can_be_read_without_importing(name):
    """Keyword-only, types and ranges, literal defaults: what the recipe's check reads from the source."""
    loss = getattr(losses, name)
    if isinstance(loss, partial):  # a variant with some of them fixed
        loss, name = loss.func, loss.func.__name__
    module = inspect.getmodule(inspect.unwrap(loss))
    (function,) = (node for node in ast.parse(inspect.getsource(module)).body if getattr(node, "name", "") == name)
    assert [argument.arg for argument in function.args.args] in (
        ["teacher_logits", "student_logits"],
        ["targets", "student_logits"],
    )
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        # Any: an annotation that the registry can't read, so that no value would be checked
        assert registry.signature("loss", name).keywords[argument.arg].annotation is not Any
        ast.literal_eval(default)
