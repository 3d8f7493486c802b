"""The losses of other methods on logits: each against its explicit float64 formula, and its own properties."""

import pytest
import torch
from torch.autograd import gradcheck

from tests.support import reference_losses as reference
from tests.support.reference_losses import language_logits, value_and_gradient
from tests.support.registered_losses import losses

ROWS = torch.tensor([0, 0, 0, 2, 3, 3])  # rows of data with 3, 1 and 2 positions; one has none
TARGETS = torch.tensor([3, 0, 96, 3, 7, 50])
FURTHER = {"decoupled_kd": (TARGETS,), "taid": (0.25,), "sinkhorn": (ROWS,), "plackett_luce": (TARGETS,)}
FURTHER |= {"swing_kl": (TARGETS,), "top_k_kl": (), "partial_ranking": ()}
VARIANTS = [
    ("decoupled_kd", {}),
    ("decoupled_kd", {"temperature": 4.0, "alpha": 0.5, "beta": 8.0}),
    ("taid", {}),
    ("taid", {"start": 0.2, "end": 0.8, "temperature": 2.0}),
    ("top_k_kl", {}),
    ("top_k_kl", {"temperature": 2.0, "k": 3}),
    ("swing_kl", {}),
    ("swing_kl", {"temperature": 2.0, "hottest": 3.0, "noise": 0.2}),
    ("plackett_luce", {}),
    ("plackett_luce", {"temperature": 3.0}),
    ("partial_ranking", {}),
    ("partial_ranking", {"k": 2}),
    ("sinkhorn", {}),
    ("sinkhorn", {"temperature": 1.0, "smoothing": 0.5, "iterations": 3}),
]
names = pytest.mark.parametrize("name", FURTHER)


def ours(name, **parameters):
    """Return the loss as a function of teacher and student logits only."""
    return lambda teacher, student: getattr(losses, name)(teacher, student, *FURTHER[name], **parameters)


def theirs(name, **parameters):
    formula = getattr(reference, name)

    def loss(teacher, student):
        if name == "sinkhorn":
            sets = [row == ROWS for row in ROWS.unique()]
            return torch.cat([formula(teacher[chosen], student[chosen], **parameters) for chosen in sets])
        each = (of.tolist() if isinstance(of, torch.Tensor) else [of] * len(teacher) for of in FURTHER[name])
        return torch.stack([formula(*one, **parameters) for one in zip(teacher, student, *each, strict=True)])

    return loss


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_equals_the_explicit_formula(name, parameters):
    teacher, student = language_logits(6, 97, seed=1)
    value, gradient = value_and_gradient(ours(name, **parameters), teacher, student)
    value_expected, gradient_expected = value_and_gradient(theirs(name, **parameters), teacher, student)
    torch.testing.assert_close(value, value_expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    "name", sorted(FURTHER.keys() - {"taid", "swing_kl"})
)  # theirs moves with the student, undifferentiated
def test_gradient_is_the_slope(name):
    teacher, student = language_logits(6, 97, seed=2)
    assert gradcheck(lambda z: ours(name)(teacher, z), student.requires_grad_(), fast_mode=True)


@names
def test_half_precision_is_computed_in_float32(name):
    teacher, student = language_logits(6, 200, seed=4, dtype=torch.bfloat16)
    value = ours(name)(teacher, student)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, ours(name)(teacher.float(), student.float()), rtol=0, atol=0)


@names
def test_the_teacher_gets_no_gradient(name):
    teacher, student = (z.requires_grad_() for z in language_logits(6, 97, seed=6))
    ours(name)(teacher, student).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@names
@pytest.mark.parametrize("padded", [("teacher",), ("student",), ("teacher", "student")])
def test_padding_in_either_model_is_as_if_the_columns_were_not_there(name, padded):
    teacher, student = language_logits(6, 100, seed=8, dtype=torch.float32)
    kept = slice(0, 97)  # the targets are among them
    value_without, gradient_without = value_and_gradient(ours(name), teacher[:, kept], student[:, kept])
    for model, z in {"teacher": teacher, "student": student}.items():
        if model in padded:
            z[:, 97:] = -torch.inf
    value, gradient = value_and_gradient(ours(name), teacher, student)
    torch.testing.assert_close(value, value_without)
    torch.testing.assert_close(gradient[:, kept], gradient_without)
    assert (gradient[:, 97:] == 0).all()


@pytest.mark.parametrize("name", ["decoupled_kd", "taid", "top_k_kl"])
def test_equal_logits_cost_nothing(name):
    value, gradient = value_and_gradient(ours(name), *[language_logits(6, 97, seed=3)[0]] * 2)
    assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


@names
def test_no_positions_no_loss(name):
    student = torch.zeros(0, 12, requires_grad=True)
    further = (of[:0] if isinstance(of, torch.Tensor) else of for of in FURTHER[name])
    value = getattr(losses, name)(torch.zeros(0, 12), student, *further)
    assert value.shape == (0,)
    value.sum().backward()


def test_decoupled_kd_is_forward_kl_when_its_halves_are_weighed_as_there():
    teacher, student = language_logits(6, 97, seed=5)
    apart = [losses.decoupled_kd(teacher, student, TARGETS, alpha=alpha, beta=1 - alpha) for alpha in (1.0, 0.0)]
    share = teacher.softmax(-1)[torch.arange(6), TARGETS]
    torch.testing.assert_close(apart[0] + (1 - share) * apart[1], losses.forward_kl(teacher, student))


def test_decoupled_kd_of_a_position_without_a_target_is_0():
    teacher, student = language_logits(2, 20, seed=5)
    value = losses.decoupled_kd(teacher, student, torch.tensor([-100, 4]))
    assert value[0] == 0 and value[1] > 0


def test_grounded_kl_is_reverse_kl_of_a_target_that_leans_on_what_is_seen():
    teacher, student = language_logits(4, 30, seed=5)
    blind = language_logits(4, 30, seed=6)[0]
    parameters = {"temperature": 2.0, "visual": 3.0}
    whole = value_and_gradient(losses.grounded_kl, teacher, student, blind_logits=blind, **parameters)

    def parts(t, s):
        return torch.stack([reference.grounded_kl(*one, **parameters) for one in zip(t, s, blind, strict=True)])

    torch.testing.assert_close(whole, value_and_gradient(parts, teacher, student), rtol=1e-9, atol=1e-12)
    as_it_is = losses.grounded_kl(teacher, student, blind, visual=1.0)
    torch.testing.assert_close(as_it_is, losses.reverse_kl(teacher, student))
    torch.testing.assert_close(losses.grounded_kl(teacher, student, teacher), as_it_is)  # it doesn't need to see
    padded = [torch.cat([z, torch.full((4, 2), -torch.inf)], 1) for z in (teacher, student, blind)]
    torch.testing.assert_close(losses.grounded_kl(*padded), losses.grounded_kl(teacher, student, blind))


def test_swing_is_forward_kl_where_the_student_guesses_the_target_too():
    teacher, student = language_logits(4, 30, seed=5)
    least = (teacher.log_softmax(-1) - student.log_softmax(-1)).argmin(-1)
    plain = losses.forward_kl(teacher, student)
    torch.testing.assert_close(losses.swing_kl(teacher, student, least), plain)
    torch.testing.assert_close(losses.swing_kl(teacher, student, torch.full((4,), -100)), plain)
    known = torch.zeros(4, 30).double().scatter(1, least[:, None], 60.0)  # by the teacher alone
    assert (losses.swing_kl(known, student, least) < 0.5 * losses.forward_kl(known, student)).all()


def test_plackett_luce_needs_the_order_alone():
    """The first choice is the cross-entropy, weighted; a student that keeps the order and is sure of it costs nothing."""
    teacher, student = language_logits(4, 30, seed=5)
    targets, others = teacher.argmax(-1), torch.tensor([-100, 4, 4, 4])
    assert losses.plackett_luce(teacher, 1e4 * teacher, targets).max() < 1e-9
    sure = torch.zeros(4, 30).double().scatter(1, targets[:, None], 100.0)
    torch.testing.assert_close(
        losses.plackett_luce(sure, student, targets), losses.cross_entropy(targets, student), rtol=1e-9, atol=1e-9
    )
    assert losses.plackett_luce(teacher, student, others)[0] == 0


def test_partial_ranking_is_of_the_student_s_likely_ids():
    teacher, student = language_logits(4, 30, seed=5)
    best = student.topk(3).indices
    other = 3 * teacher + torch.zeros(4, 30).double().scatter(1, best, 9.0)  # their order is the same
    torch.testing.assert_close(
        losses.partial_ranking(teacher, student, k=3), losses.partial_ranking(other, student, k=3)
    )
    assert losses.partial_ranking(1e3 * student, 1e3 * student, k=3).max() < 1e-6


def test_taid_ends_as_forward_kl_and_starts_nearer():
    teacher, student = language_logits(4, 40, seed=6)
    values = [losses.taid(teacher, student, progress) for progress in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(values[2], losses.forward_kl(teacher, student))
    assert (values[0] < values[1]).all() and (values[1] < values[2]).all()
    assert losses.taid(teacher, student, 0.0, start=0.0).abs().max() < 1e-12


def test_sinkhorn_of_one_position_is_its_own_distance():
    teacher, student = language_logits(1, 30, seed=7)
    distance = ((teacher / 2).softmax(-1) - (student / 2).softmax(-1)).abs().sum(-1)
    torch.testing.assert_close(losses.sinkhorn(teacher, student, torch.tensor([4])), distance)


def test_sinkhorn_does_not_mind_the_order_of_positions_within_a_row():
    """It compares sets; a divergence compares position by position."""
    teacher, student = language_logits(5, 30, seed=9)
    rows = torch.zeros(5, dtype=torch.int64)
    total = losses.sinkhorn(teacher, student, rows, iterations=200).sum()
    shuffled = losses.sinkhorn(teacher, student[[3, 1, 4, 0, 2]], rows, iterations=200).sum()
    torch.testing.assert_close(total, shuffled, rtol=1e-6, atol=0)
    assert losses.sinkhorn(teacher, teacher[[3, 1, 4, 0, 2]], rows, smoothing=0.02).max() < 1e-2


def test_sinkhorn_sees_no_other_row():
    teacher, student = language_logits(6, 97, seed=10)
    whole = losses.sinkhorn(teacher, student, ROWS)
    alone = losses.sinkhorn(teacher[3:], student[3:], ROWS[3:])
    torch.testing.assert_close(whole[3:], alone, rtol=1e-12, atol=1e-14)
