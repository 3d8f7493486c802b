"""Losses over spans of bytes against explicit float64 formulas: sums token by token, sorted lists, a double loop over W."""

import math

import pytest
import torch

from tests.support.reference_losses import value_and_gradient
from tests.support.registered_losses import losses

TEACHER_SPANS = torch.tensor([-1, 0, 0, 1, 2, 2, 2, (1 << 32), -1])
STUDENT_SPANS = torch.tensor([0, 1, 1, 1, 2, (1 << 32), (1 << 32)])
SPANS = (0, 1, 2, 1 << 32)
PIECES = torch.tensor([3, 0, -1, 5, 5, 12, 1, 7])  # of eight student tokens, among thirteen of the teacher's


def drawn(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher = 3 * torch.randn(len(TEACHER_SPANS), 13, generator=generator, dtype=torch.float64)
    student = 3 * torch.randn(len(STUDENT_SPANS), 8, generator=generator, dtype=torch.float64)
    of_teacher = torch.randint(13, (len(teacher),), generator=generator)
    return teacher.to(dtype), student.to(dtype), of_teacher, torch.randint(8, (len(student),), generator=generator)


def called(name, teacher, student, of_teacher, of_student, **parameters):
    given = {"alm": [of_teacher, of_student], "uld": [], "projected_kl": []}[name]
    given += [TEACHER_SPANS, STUDENT_SPANS] + [PIECES] * (name == "projected_kl")
    return losses.__dict__[name](teacher, student, *given, **parameters)


def places(spans, span):
    return [i for i, of in enumerate(spans.tolist()) if of == span]


def alm(teacher, student, of_teacher, of_student, *, temperature=100.0, divergence="forward"):
    def chance(logits, ids, spans, span):
        product = 1.0
        for i in places(spans, span):
            product = product * logits[i].softmax(0)[ids[i]]
        return product ** (1 / temperature)

    values = []
    for span in SPANS:
        p = chance(teacher.detach(), of_teacher, TEACHER_SPANS, span)
        q = chance(student, of_student, STUDENT_SPANS, span)
        p, q = (p, q) if divergence == "forward" else (q, p)
        values.append(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    return torch.stack(values)


def uld(teacher, student, of_teacher, of_student, *, temperature=1.0):
    values = []
    for span in SPANS:
        p = sorted((teacher[places(TEACHER_SPANS, span)[0]] / temperature).softmax(0), reverse=True)
        q = sorted((student[places(STUDENT_SPANS, span)[0]] / temperature).softmax(0), reverse=True)
        values.append(sum((a - b).abs() for a, b in zip(p, q + [0.0] * (len(p) - len(q)), strict=True)))
    return torch.stack(values)


def projected_kl(teacher, student, of_teacher, of_student, *, temperature=1.0, k=100):
    values = []
    for span in SPANS:
        p = (teacher[places(TEACHER_SPANS, span)[0]] / temperature).softmax(0)
        q = (student[places(STUDENT_SPANS, span)[0]] / temperature).softmax(0)
        w = torch.zeros(8, 13, dtype=torch.float64)
        for token, piece in enumerate(PIECES.tolist()):
            if piece >= 0:
                w[token, piece] = 1
        projected, total = q @ w, 0.0
        best = sorted({*PIECES.tolist()} - {-1}, key=lambda id: -float(p[id]))[:k]
        for id in best:
            total = total + p[id] * (p[id] / projected[id]).log()
        rest, of_student = 1 - sum(p[id] for id in best), 1 - sum(projected[id] for id in best)
        values.append(total + rest * (rest / of_student).log())
    return torch.stack(values)


CASES = [
    (alm, {}),
    (alm, {"temperature": 1.0}),
    (alm, {"temperature": 10.0, "divergence": "reverse"}),
    (uld, {}),
    (uld, {"temperature": 2.0}),
    (projected_kl, {"k": 4}),
    (projected_kl, {"k": 6}),
    (projected_kl, {"k": 2, "temperature": 2.0}),
]


@pytest.mark.parametrize(("formula", "parameters"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_loss_is_its_formula(formula, parameters, dtype):
    teacher, student, *ids = drawn(dtype)
    got = value_and_gradient(lambda t, s: called(formula.__name__, t, s, *ids, **parameters), teacher, student)
    expected = value_and_gradient(lambda t, s: formula(t, s, *ids, **parameters), teacher.double(), student.double())
    exact = dtype == torch.float64
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-9 if exact else 1e-3, atol=1e-12 if exact else 1e-5)


@pytest.mark.parametrize("name", ["alm", "uld", "projected_kl"])
def test_the_teacher_gets_no_gradient_and_half_precision_is_computed_in_float32(name):
    teacher, student, *ids = drawn()
    teacher.requires_grad_()
    student.requires_grad_()
    called(name, teacher, student, *ids).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert called(name, teacher.bfloat16(), student.bfloat16(), *ids).dtype == torch.float32


@pytest.mark.parametrize("name", ["alm", "uld", "projected_kl"])
def test_certain_models_have_finite_values_and_gradients(name):
    teacher, student, *ids = drawn(torch.float32)
    sure = (torch.full_like(teacher, -1e4).scatter(1, ids[0][:, None], 1e4) for _ in range(2))
    for of_teacher in sure:
        for of_student in (torch.full_like(student, -1e4).scatter(1, ids[1][:, None], 1e4), -student * 1e4, student):
            got = value_and_gradient(lambda t, s: called(name, t, s, *ids), of_teacher, of_student)
            assert all(one.isfinite().all() for one in got)


@pytest.mark.parametrize("name", ["alm", "uld", "projected_kl"])
def test_without_spans_there_is_no_value(name):
    empty = torch.zeros(0, dtype=torch.long)
    student = torch.zeros(0, 8, requires_grad=True)
    given = [empty] * (2 * (name == "alm")) + [empty, empty] + [PIECES] * (name == "projected_kl")
    value = losses.__dict__[name](torch.zeros(0, 13), student, *given)
    assert value.shape == (0,)
    value.sum().backward()


def test_equal_chances_of_a_span_are_no_difference_however_it_is_divided():
    """A word of probability 1/4: two tokens of 1/2 each, or one of 1/4."""
    teacher = torch.tensor([[0.0, 0.0, -1e9], [0.0, -1e9, 0.0]])
    student = torch.tensor([[0.0, math.log(3.0)]])
    spans = torch.tensor([0, 0]), torch.tensor([0])
    value = losses.alm(teacher, student, torch.tensor([1, 2]), torch.tensor([0]), *spans, temperature=1.0)
    torch.testing.assert_close(value, torch.zeros(1), atol=1e-6, rtol=0)
