"""The objective: terms and counts; no split of a step into micro-batches changes its gradient."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from switchkd_cli import registry
from switchkd_cli.engine.paths import FeatureAdapter, Paths
from switchkd_cli.engine.training.chunked import ChunkedObjective, compare_with_dense
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.recipe.schema import BUILT_IN, Term
from switchkd_cli.recipe.validate import _reach
from tests.support import tiny

dense_objective = partial(ChunkedObjective, dense=True)
TERMS = (
    Term(loss="cross_entropy"),
    Term(name="align", loss="dbild", of="student", to="teacher", weight=0.5),
    Term(name="vsd", loss="dbild", of="switch", to="teacher", weight=2.0, on="text"),
)


@pytest.fixture(scope="module")
def paths():
    student = tiny.model(seed=1)
    return Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))


def gradients(paths, batches, terms=TERMS):
    objective = Objective(terms)
    counts = objective.counts(batches)
    paths.zero_grad()
    for batch in batches:
        keep = objective.keep(batch)
        parts = objective(LossInputs(paths(batch, objective.outputs, keep), None, batch, keep, counts))
        objective.total(parts).backward()
    return {n: p.grad.clone() for n, p in paths.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("turns", ["chained", "independent"])
@pytest.mark.parametrize("borders", [c for n in (1, 2, 3) for c in itertools.combinations((1, 2, 3), n)])
def test_gradients_are_equal_for_any_split(paths, tmp_path, turns, borders):
    data = tiny.conversations(paths.student, tmp_path, turns)
    examples = [data[i] for i in range(4)]  # rows with unlike numbers of answer tokens, one without a picture
    cuts = [0, *borders, 4]
    whole = gradients(paths, [tiny.together(paths.student, examples)])
    split = gradients(paths, [tiny.together(paths.student, examples[a:b]) for a, b in itertools.pairwise(cuts)])
    assert whole.keys() == split.keys()
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-4, atol=1e-7, msg=name)


def test_cross_entropy_term_is_transformers_own_loss(paths, tmp_path):
    batch = tiny.batch(paths.student, tmp_path)
    objective = Objective(TERMS[:1])
    keep = objective.keep(batch)
    parts = objective(LossInputs(paths(batch, objective.outputs, keep), None, batch, keep, objective.counts([batch])))
    theirs = paths.student.model(
        input_ids=batch.input_ids,
        pixel_values=tiny.pixels(batch),
        attention_mask=batch.attention.long(),
        labels=batch.labels,
    ).loss
    torch.testing.assert_close(parts["cross_entropy"], theirs, rtol=1e-5, atol=1e-6)


def test_readings_are_derived_from_the_terms():
    assert Objective(TERMS[:1]).outputs == {"student"}
    assert Objective(TERMS[1:2]).outputs == {"student", "teacher"}
    assert Objective(TERMS[2:]).outputs == {"switch", "teacher"}


def test_total_is_the_weighted_sum(paths, tmp_path):
    batch = tiny.batch(paths.student, tmp_path)
    objective = Objective(TERMS)
    keep = objective.keep(batch)
    parts = objective(LossInputs(paths(batch, objective.outputs, keep), None, batch, keep, objective.counts([batch])))
    expected = parts["cross_entropy"] + 0.5 * parts["align"] + 2 * parts["vsd"]
    torch.testing.assert_close(objective.total(parts), expected)


def test_a_batch_without_answers_is_zero_not_nan(paths, tmp_path):
    batch = tiny.batch(paths.student, tmp_path)
    empty = type(batch)(**{**vars(batch), "labels": torch.full_like(batch.labels, -100)})
    objective = Objective(TERMS[:2])
    keep = objective.keep(empty)
    parts = objective(LossInputs(paths(empty, objective.outputs, keep), None, empty, keep, objective.counts([empty])))
    assert {k: v.item() for k, v in parts.items()} == {"cross_entropy": 0.0, "align": 0.0}


def alone():
    """Every loss as the only term, of each path that it may have, with each single part that it trains."""
    signatures = {name: registry.signature("loss", name) for name in registry.LOSSES}
    # neither of bytes nor of a path that a recipe has to name
    for loss in (name for name, of in signatures.items() if not of.of_spans and set(of.sides) <= BUILT_IN.keys()):
        to = "teacher" if any(side == "teacher" for side, _ in registry.signature("loss", loss).reads) else "labels"
        for of in ("student", "switch"):
            term = {"name": "only", "loss": loss, "of": of, "to": to}
            yield from ((term, part) for part in sorted(_reach(Term(**term))))


@pytest.mark.parametrize(
    ("term", "part"), list(alone()), ids=lambda v: v if isinstance(v, str) else f"{v['loss']}-{v['of']}"
)
def test_a_term_alone_takes_a_micro_batch_of_text(paths, tmp_path, term, part):
    """A term without positions or images is 0 with a graph: every process can take its backward pass."""
    paths.switch_adapter = FeatureAdapter(16, 16) if part == "adapter" else None
    paths.requires_grad_(False)
    trained = [*nn.ParameterList(paths.used_parameters(part)).requires_grad_(True)]
    on = "answer" if registry.signature("loss", term["loss"]).of_images else "image"
    objective = Objective([Term(**term, on=on if term["to"] == "teacher" else "answer")])
    data = tiny.conversations(paths.student, tmp_path)
    pictured, text = (tiny.together(paths.student, [data[i] for i in rows]) for rows in ((0, 2), (1,)))
    counts = objective.counts([text, pictured])
    paths.adapt(objective.outputs)
    for way in (dense_objective(objective), ChunkedObjective(objective)):
        found = []
        for batches in ([text, pictured], [pictured]):
            paths.zero_grad()
            for batch in batches:
                keep = objective.keep(batch)
                inputs = LossInputs(paths(batch, way.outputs, keep), paths.heads(), batch, keep, counts)
                total, _ = way(inputs)
                assert total.requires_grad
                total.backward()
            found.append([p.grad if p.grad is None else p.grad.clone() for p in trained])
        if objective.counted(objective.terms[0]).endswith("answer"):  # text has answers
            continue
        for with_text, without in zip(*found, strict=True):
            torch.testing.assert_close(with_text, without, rtol=0, atol=1e-9)
    paths.requires_grad_(True)
    paths.switch_adapter = None
    paths.adapt(())


def test_a_micro_batch_of_text_leaves_gradients_of_zero_not_none(paths, tmp_path):
    """As in several processes of which one has images: AdamW uses its moments in either case."""
    paths.requires_grad_(False)
    parts = (*paths.used_parameters("vision"), *paths.used_parameters("projector"))
    trained = [*nn.ParameterList(parts).requires_grad_(True)]
    got = gradients(paths, [tiny.batch(paths.student, tmp_path, which=[tiny.row("t", None, ("Hi.", "hi"))])])
    assert len(got) == len(trained) and not any(gradient.any() for gradient in got.values())
    paths.requires_grad_(True)


def test_a_term_on_images_takes_a_ragged_number_of_visual_tokens(paths, tmp_path):
    """Its value is the mean over images, whatever the number of visual tokens of each."""
    batch = tiny.batch(paths.student, tmp_path)
    objective = Objective([Term(loss="token_mse", to="teacher"), Term(loss="hidden_correlation", to="teacher")])
    keep = objective.keep(batch)
    outputs = paths(batch, objective.outputs - {"student.tokens", "teacher.tokens"}, keep)
    drawn = torch.Generator().manual_seed(0)
    for side in ("student", "teacher"):
        outputs[f"{side}.tokens"] = tuple(
            torch.randn(tokens, 24, generator=drawn, requires_grad=side == "student") for tokens in (3, 5, 2)
        )
    inputs = LossInputs(outputs, paths.heads(), batch, keep, objective.counts([batch]))
    total, parts = ChunkedObjective(objective)(inputs)
    pairs = zip(outputs["teacher.tokens"], outputs["student.tokens"], strict=True)
    expected = torch.stack([(t - s).square().mean() for t, s in pairs]).mean()
    torch.testing.assert_close(parts["token_mse"], expected.detach())
    total.backward()
    assert all(image.grad is not None for image in outputs["student.tokens"])
    assert compare_with_dense(objective, inputs)["check/loss"] < 1e-5


def test_a_broken_image_of_a_ragged_batch_is_named_by_its_row(paths, tmp_path):
    batch = tiny.batch(paths.student, tmp_path)
    objective = Objective([Term(loss="token_mse", to="teacher")])
    tokens = tuple(torch.zeros(count, 24) for count in (3, 5, 2))
    broken = (tokens[0], tokens[1] + torch.nan, tokens[2])
    outputs = {"student.tokens": broken, "teacher.tokens": tokens}
    inputs = LossInputs(outputs, None, batch, objective.keep(batch), objective.counts([batch]))
    assert dense_objective(objective).non_finite_rows(["token_mse"], inputs) == {"token_mse": {"c"}}
