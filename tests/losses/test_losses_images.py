"""The losses over images and hidden states: each against its explicit float64 formula."""

import pytest
import torch
from torch.autograd import gradcheck

from switchkd_cli.engine import batch as per_image
from tests.support import reference_losses as reference
from tests.support.reference_losses import language_logits, value_and_gradient
from tests.support.registered_losses import losses

ROWS = torch.tensor([1, 1, 1, 4, 4, 4])


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(seed):
    """Return [3 images, 5 queries, 6 image tokens, 2 heads]; image 0 has queries that don't see it, image 2 no others."""
    weights = drawn(3, 5, 6, 2, seed=seed).softmax(2) / 2
    weights[0, :2], weights[2] = 0, 0
    return weights


TOKENS = drawn(3, 6, 4, seed=1), drawn(3, 6, 4, seed=2)
CASES = {
    "feature_mse": (TOKENS, {}, "mean_squares"),
    "token_mse": (TOKENS, {}, "mean_squares"),
    "attended_token_mse": ((*TOKENS, attention(3)), {"k": 2}, "attended_token_mse"),
    "attention_mse": ((attention(4), attention(5)), {}, "attention_mse"),
    "attention_kl": ((attention(6).mean(-1), attention(7).mean(-1)), {}, "attention_kl"),
}
cases = pytest.mark.parametrize("name", CASES)


def both(name, teacher, student, *further, **parameters):
    """Return value and gradient of the loss, and of the formula image by image."""
    formula = getattr(reference, CASES[name][2])

    def ours(t, s):
        return getattr(losses, name)(t, s, *further, **parameters)

    def theirs(t, s):
        return torch.stack([formula(*one, **parameters) for one in zip(t, s, *further, strict=True)])

    return value_and_gradient(ours, teacher, student), value_and_gradient(theirs, teacher, student)


@cases
def test_equals_the_explicit_formula(name):
    given, parameters, _ = CASES[name]
    (value, gradient), (value_expected, gradient_expected) = both(name, *given, **parameters)
    torch.testing.assert_close(value, value_expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-10, atol=1e-14)


@cases
def test_the_teacher_gets_no_gradient_and_half_precision_is_computed_in_float32(name):
    given, parameters, _ = CASES[name]
    teacher, student, *further = (x.clone().requires_grad_() for x in given)
    loss = getattr(losses, name)
    loss(teacher, student, *further, **parameters).sum().backward()
    assert student.grad.abs().sum() > 0
    assert all(x.grad is None for x in (teacher, *further))
    half = [x.detach().bfloat16() for x in (teacher, student, *further)]
    assert loss(*half, **parameters).dtype == torch.float32


@cases
def test_no_pictures_no_loss(name):
    given, parameters, _ = CASES[name]
    teacher, student, *further = (x[:0].clone().requires_grad_() for x in given)
    value = getattr(losses, name)(teacher, student, *further, **parameters)
    assert value.shape == (0,)
    value.sum().backward()


def ragged_axis(name, position):
    """Return the axis of one image's visual tokens: attention has the queries in front of them."""
    return 1 if name.startswith("attention") or position == 2 else 0


@cases
def test_images_may_have_different_numbers_of_visual_tokens(name):
    given, parameters, formula = CASES[name]
    teacher, student, *others = [
        tuple(one.narrow(ragged_axis(name, position), 0, count) for one, count in zip(argument, (6, 2, 4), strict=True))
        for position, argument in enumerate(given)
    ]
    leaves = [image.clone().requires_grad_() for image in student]
    value = per_image.loss_per_image(getattr(losses, name), teacher, tuple(leaves), *others, **parameters)
    again = [image.clone().requires_grad_() for image in student]
    images = zip(teacher, again, *others, strict=True)
    expected = torch.stack([getattr(reference, formula)(*image, **parameters) for image in images])
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
    gradients = torch.autograd.grad(value.sum(), leaves)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.sum(), again), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@cases
def test_stacked_images_are_one_call(name):
    given, parameters, _ = CASES[name]
    calls = []

    def loss(*arguments, **keywords):
        calls.append(arguments)
        return getattr(losses, name)(*arguments, **keywords)

    value = per_image.loss_per_image(loss, *given, **parameters)
    assert len(calls) == 1 and all(a is b for a, b in zip(calls[0], given, strict=True))
    assert torch.equal(value, getattr(losses, name)(*given, **parameters))


def test_images_are_stacked_where_their_shapes_agree():
    one, other = TOKENS[0][0], TOKENS[0][1]
    assert torch.equal(per_image.together([one, other]), TOKENS[0][:2])
    assert [len(image) for image in per_image.together([one, other[:2]])] == [6, 2]
    widened = torch.nn.Linear(4, 5, dtype=torch.float64)
    parts = per_image.apply(widened, (one, other[:2]))
    torch.testing.assert_close(parts[1], widened(TOKENS[0])[1, :2])


def test_attended_tokens_are_all_of_them_where_there_are_no_more_than_k():
    whole = losses.attended_token_mse(*TOKENS, attention(3), k=99)
    torch.testing.assert_close(whole, losses.token_mse(*TOKENS))


def test_attention_without_renormalising_is_the_public_code_s_sum():
    pair = attention(6).mean(-1), attention(7).mean(-1)
    (value, gradient), (expected, gradient_expected) = both("attention_kl", *pair, renormalise=False)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-10, atol=1e-14)


def test_what_a_query_gives_to_text_matters_only_where_shares_are_not_renormalised():
    teacher, half = attention(6).mean(-1), attention(6).mean(-1) / 2
    whole = losses.attention_kl(teacher, half)
    torch.testing.assert_close(whole, torch.zeros_like(whole), rtol=0, atol=1e-6)
    assert (losses.attention_kl(half, teacher, renormalise=False)[:2] < -0.1).all()


RELATIONS = {"self_correlation": "self_correlation", "hidden_correlation": "self_correlation"}
RELATIONS |= {name: name for name in ("cka", "token_graph", "contrastive", "pseudo_classes")}


def relation(name, teacher, student, rows):
    further = (rows, rows) if name == "cka" else (rows,)
    return getattr(losses, name)(teacher, student, *further)


@pytest.mark.parametrize("rows", [ROWS, torch.tensor([0, 2, 2, 5, 5, 5])], ids=["3 each", "1, 2 and 3"])
@pytest.mark.parametrize("name", RELATIONS)
def test_relations_equal_the_explicit_formula(name, rows):
    teacher, student = language_logits(6, 40, seed=1)

    def theirs(t, s):
        formula = getattr(reference, RELATIONS[name])
        return torch.cat([formula(t[rows == row], s[rows == row]) for row in rows.unique()])

    def ours(t, s):
        return relation(name, t, s, rows)

    value, gradient = value_and_gradient(ours, teacher, student)
    value_expected, gradient_expected = value_and_gradient(theirs, teacher, student)
    torch.testing.assert_close(value, value_expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-8, atol=1e-12)
    assert gradcheck(lambda z: ours(teacher, z), student.requires_grad_(), fast_mode=True)


def test_self_correlation_asks_for_the_teacher_s_relations_not_for_its_logits():
    teacher, _ = language_logits(6, 40, seed=2)
    turned = torch.linalg.qr(drawn(40, 40, seed=3)).Q
    assert losses.self_correlation(teacher, 3 * teacher @ turned, ROWS).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["hidden_correlation", "cka", "token_graph"])
def test_relations_of_hidden_states_need_no_equal_widths(name):
    hidden = drawn(6, 5, seed=6)
    wider = torch.cat([2 * hidden, torch.zeros(6, 3)], 1).requires_grad_()
    assert relation(name, wider, hidden, ROWS).abs().max() < 1e-12
    value = relation(name, wider, drawn(6, 8, seed=7).requires_grad_(), ROWS)
    assert value.min() > 0.01
    value.sum().backward()
    assert wider.grad is None
    assert relation(name, wider.bfloat16(), hidden.bfloat16(), ROWS).dtype == torch.float32
    assert relation(name, wider[:0], hidden[:0], ROWS[:0]).shape == (0,)


def test_one_position_has_no_relations():
    """cka's is undefined: it costs 1, and has no gradient; a graph of one token has no edge."""
    one, other = drawn(1, 5, seed=6), drawn(1, 5, seed=7).requires_grad_()
    (gradient,) = torch.autograd.grad(relation("cka", one, other, ROWS[:1]).sum(), other)
    assert relation("cka", one, other, ROWS[:1]) == 1 and not gradient.any()
    assert relation("token_graph", one, other, ROWS[:1]) == 0


def test_cka_averages_the_teacher_s_neighbours_where_it_has_more_positions():
    theirs, ours = drawn(6, 5, seed=6), drawn(3, 8, seed=7)
    rows, twice = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 1])
    averaged = theirs.view(3, 2, 5).mean(1)
    torch.testing.assert_close(losses.cka(theirs, ours, twice, rows), relation("cka", averaged, ours, rows))


def test_self_correlation_leaves_padding_out():
    teacher, student = language_logits(6, 40, seed=4)
    padded = torch.cat([student, torch.full((6, 3), -torch.inf)], 1)
    wider = torch.cat([teacher, drawn(6, 3, seed=5)], 1)
    torch.testing.assert_close(
        losses.self_correlation(wider, padded, ROWS), losses.self_correlation(teacher, student, ROWS)
    )
    none = losses.self_correlation(teacher[:0], student[:0], ROWS[:0])
    assert none.shape == (0,)


@pytest.mark.parametrize("name", ["contrastive", "pseudo_classes"])
def test_what_compares_states_has_the_form_of_a_loss(name):
    teacher, student = (drawn(6, 4, seed=seed).requires_grad_() for seed in (1, 2))
    relation(name, teacher, student, ROWS).sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert relation(name, teacher.bfloat16(), student.bfloat16(), ROWS).dtype == torch.float32
    assert relation(name, teacher[:0], student[:0], ROWS[:0]).shape == (0,)


def test_pseudo_classes_are_0_for_equal_states_and_look_along_the_components_alone():
    teacher = drawn(6, 4, seed=1)
    flat = torch.cat([teacher[:, :2], torch.zeros(6, 2)], 1)  # two components
    assert relation("pseudo_classes", teacher, teacher, ROWS).abs().max() < 1e-12
    aside = flat + torch.cat([torch.zeros(6, 2), drawn(6, 2, seed=3)], 1)
    assert relation("pseudo_classes", flat, aside, ROWS).abs().max() < 1e-12


@pytest.mark.parametrize("counts", [(3, 3), (4, 2), (2, 4)], ids=str)
@pytest.mark.parametrize("name", ["matched_kl", "affinity"])
def test_matching_equals_the_best_of_all_pairings(name, counts):
    """Two examples, with more visual tokens of either model."""
    more, less = counts
    rows = [torch.tensor([0] * (count + 2) + [3] * (count + 2)) for count in counts]
    image = [torch.tensor(([True] * count + [False] * 2) * 2) for count in counts]
    if name == "matched_kl":
        rows = [of[seen] for of, seen in zip(rows, image, strict=True)]
    teacher, student = (drawn(len(of), 7, seed=seed) for seed, of in enumerate(rows))
    further = image if name == "affinity" else []

    def theirs(t, s):
        examples = [[of == row for of in rows] for row in (0, 3)]
        each = ([of[here] for of, here in zip(further, at, strict=False)] for at in examples)
        formula = getattr(reference, name)
        return torch.cat([formula(t[a], s[b], *more) for (a, b), more in zip(examples, each, strict=True)])

    value, gradient = value_and_gradient(lambda t, s: getattr(losses, name)(t, s, *rows, *further), teacher, student)
    value_expected, gradient_expected = value_and_gradient(theirs, teacher, student)
    torch.testing.assert_close(value, value_expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-8, atol=1e-12)
    assert int((value > 0).sum()) == 2 * min(more, less)
    teacher, student = teacher.bfloat16().requires_grad_(), student.bfloat16().requires_grad_()
    half = getattr(losses, name)(teacher, student, *rows, *further)
    half.sum().backward()
    assert half.dtype == torch.float32 and teacher.grad is None


def test_matching_does_not_mind_the_order_of_visual_tokens():
    logits = drawn(4, 9, seed=1)
    rows = torch.zeros(4, dtype=torch.int64)
    assert losses.matched_kl(logits[[2, 0, 3, 1]], logits, rows, rows).max() < 1e-12


@pytest.mark.parametrize("counts", [(4, 3), (3, 4)], ids=str)
@pytest.mark.parametrize("padded", [0, 1], ids=["teacher", "student"])
def test_matching_leaves_columns_out_that_are_padding_in_either_model(counts, padded):
    models = [drawn(count, 9, seed=seed) for seed, count in enumerate(counts)]
    rows = [torch.zeros(count, dtype=torch.int64) for count in counts]
    expected = losses.matched_kl(*(of[:, :7] for of in models), *rows)
    models[padded][:, 7:] = -torch.inf
    torch.testing.assert_close(losses.matched_kl(*models, *rows), expected)


@pytest.mark.parametrize("broken", [0, 1], ids=["teacher", "student"])
@pytest.mark.parametrize("name", ["matched_kl", "affinity", "pseudo_classes"])
def test_states_that_are_no_numbers_cost_nan_in_their_own_example_alone(name, broken):
    states = [drawn(6, 7, seed=1), drawn(6, 7, seed=2)]
    states[broken][4] = torch.nan
    image = torch.tensor([True, True, False] * 2)
    further = {"matched_kl": (ROWS, ROWS), "affinity": (ROWS, ROWS, image, image), "pseudo_classes": (ROWS,)}[name]
    value = getattr(losses, name)(*states, *further)
    assert value[:3].isfinite().all() and value[3:].isnan().any()


@pytest.mark.parametrize(
    ("layers", "shares", "chosen"),
    [
        ((12, 5), {}, {1: [3, 4, 5], 2: [5, 6, 7]}),  # five layers for two: the middle one is in both groups
        ((10, 10), {"first": 0.0, "last": 1.0}, {i: [i] for i in range(10)}),
        ((4, 3), {"first": 0.9, "last": 1.0}, {2: [3]}),
    ],
)
def test_attention_of_layers_is_compared_with_the_mean_of_a_group_of_the_teacher_s(layers, shares, chosen):
    def stacked(count, seed):
        return torch.stack([attention(seed + i).mean(-1) for i in range(count)], -1)

    teacher, student = stacked(layers[0], 10), stacked(layers[1], 40)

    def theirs(t, s):
        return torch.stack([reference.attention_cosine(*one, chosen=chosen) for one in zip(t, s, strict=True)])

    value, gradient = value_and_gradient(lambda t, s: losses.attention_cosine(t, s, **shares), teacher, student)
    expected, gradient_expected = value_and_gradient(theirs, teacher, student)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-8, atol=1e-12)
    whole = losses.attention_cosine(teacher, teacher, **shares)
    torch.testing.assert_close(whole, torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert losses.attention_cosine(teacher.bfloat16(), student.bfloat16()).dtype == torch.float32
    assert losses.attention_cosine(teacher[:0], student[:0]).shape == (0,)
