"""What a term reads in front of the logits: what it is, that only what is asked for is computed, and adapters."""

import pytest
import torch

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.recipe.schema import Term
from tests.support import tiny
from tests.training.test_objective import gradients
from tests.training.test_training import changed, trained

PICTURES = (
    Term(loss="cross_entropy"),
    Term(loss="feature_mse", to="teacher"),
    Term(loss="token_mse", to="teacher"),
    Term(loss="attended_token_mse", to="teacher", parameters={"k": 2}),
    Term(loss="attention_mse", to="teacher", weight=100.0),
    Term(loss="attention_kl", to="teacher"),
    Term(loss="self_correlation", to="teacher", on="image"),
    Term(loss="hidden_correlation", to="teacher", on="image"),
    Term(name="visual", loss="forward_kl", to="teacher", on="image"),
    Term(loss="sinkhorn", to="teacher"),
    Term(loss="decoupled_kd", to="teacher"),
    Term(loss="taid", to="teacher"),
)


@pytest.fixture
def paths():
    student = tiny.model(16, seed=1)
    return Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))


@pytest.fixture(params=["chained", "independent"])
def batch(request, tmp_path, paths):
    return tiny.batch(paths.student, tmp_path, request.param)


def test_a_term_s_loss_says_what_its_paths_give():
    read = {term.name: Objective([term]).outputs for term in PICTURES}
    assert read["cross_entropy"] == {"student"}
    assert read["feature_mse"] == {"student.features", "teacher.features"}
    assert read["attended_token_mse"] == {"student.tokens", "teacher.tokens", "teacher.attention"}
    assert read["self_correlation"] == {"student", "teacher"}
    assert read["hidden_correlation"] == {"student.hidden", "teacher.hidden"}
    assert read["attention_kl"] == {"student.focus", "teacher.focus"}
    switched = Term(loss="token_mse", of="switch", to="teacher")
    assert Objective([switched]).outputs == {"switch.tokens", "teacher.tokens"}


def test_attention_is_the_first_layer_s_from_text_to_image_tokens(paths, batch):
    """Against transformers' own eager attention, entry by entry."""
    reader = paths.teacher
    language = reader.model.model.language_model
    language.set_attn_implementation("eager")
    with torch.no_grad():
        visual = reader.project(reader.encode(batch.images))
        ours, of_layers = reader.attention(batch, visual), reader.attentions(batch, visual)
        embedded = reader.model.get_input_embeddings()(batch.input_ids)
        embedded[batch.image] = visual.flatten(0, 1)
        mask = batch.attention.long()
        if batch.attention.ndim == 4:
            mask = torch.zeros(batch.attention.shape).masked_fill(~batch.attention, -1e9)
        whole = language(
            inputs_embeds=embedded, attention_mask=mask, position_ids=batch.position, output_attentions=True
        ).attentions  # of each layer, [B, heads, T, T]
    pictured = [row for row in range(len(batch.ids)) if batch.image[row].any()]
    assert ours.shape == (3, batch.input_ids.shape[1], 4, 2)
    for picture, row in enumerate(pictured):
        columns = batch.image[row].nonzero()[:, 0]
        for query in range(batch.input_ids.shape[1]):
            text = batch.turn[row, query] >= 0 and not batch.image[row, query]
            expected = [layer[row, :, query, columns].T if text else torch.zeros(4, 2) for layer in whole]
            torch.testing.assert_close(ours[picture, query], expected[0], rtol=1e-4, atol=1e-6)
            means = torch.stack([heads.mean(-1) for heads in expected], -1)
            torch.testing.assert_close(of_layers[picture, query], means, rtol=1e-4, atol=1e-6)
    assert ours.sum() > 0


def test_features_and_tokens_are_what_the_path_s_logits_are_made_of(paths, batch):
    keep = batch.predicting("answer")
    given = paths(batch, {"teacher", "teacher.features", "teacher.tokens", "switch.tokens"}, keep)
    assert given.keys() == {"teacher", "teacher.features", "teacher.tokens", "switch.tokens"}
    torch.testing.assert_close(paths.teacher.project(given["teacher.features"]), given["teacher.tokens"])
    logits = paths.teacher.logits(paths.teacher.hidden_states(batch, given["teacher.tokens"], keep))
    torch.testing.assert_close(logits[:, : paths.vocabulary], given["teacher"])
    more = paths(batch, {"teacher", "teacher.hidden", "teacher.attention", "teacher.focus"}, keep)
    torch.testing.assert_close(paths.teacher.logits(more["teacher.hidden"])[:, : paths.vocabulary], logits)
    torch.testing.assert_close(more["teacher.attention"].mean(-1), more["teacher.focus"])
    assert not given["teacher.tokens"].requires_grad and given["switch.tokens"].requires_grad


@pytest.mark.parametrize(
    ("loss", "used"),
    [
        ("feature_mse", {"vision"}),
        ("token_mse", {"vision", "projector"}),
        ("attention_mse", {"vision", "projector", "first layer"}),
        ("attention_kl", {"vision", "projector", "first layer"}),
        ("hidden_correlation", {"vision", "projector", "first layer", "language"}),
        ("forward_kl", {"vision", "projector", "first layer", "language", "head"}),
    ],
)
def test_of_a_teacher_only_what_the_term_reads_is_computed(paths, batch, loss, used):
    ran = set()
    core = paths.teacher.model.model
    watched = {
        "vision": core.vision_tower.embeddings,
        "projector": core.multi_modal_projector,
        "first layer": core.language_model.layers[0].self_attn.q_proj,
        "language": core.language_model.layers[1],
        "head": paths.teacher.model.lm_head,
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
    objective = Objective([Term(loss="cross_entropy"), Term(loss=loss, to="teacher")])
    paths(batch, objective.outputs, objective.keep(batch))
    assert ran == used


def test_gradients_of_every_term_are_equal_for_any_split(paths, tmp_path):
    data = tiny.conversations(paths.student, tmp_path)
    examples = [data[i] for i in range(4)]  # one of them without a picture
    paths.adapt(Objective(PICTURES).outputs)
    whole = gradients(paths, [tiny.together(paths.student, examples)], PICTURES)
    split = gradients(
        paths, [tiny.together(paths.student, part) for part in (examples[:1], examples[1:2], examples[2:])], PICTURES
    )
    assert any("adapters" in name for name in whole)
    # a step's micro-batch without a picture leaves the vision tower's gradient alone
    assert whole.keys() == split.keys()
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_batch_without_pictures_costs_nothing_in_front_of_the_logits(paths, tmp_path):
    batch = tiny.batch(paths.student, tmp_path, which=[tiny.row("t", None, ("Say hi.", "hi there"))])
    objective = Objective(PICTURES)
    paths.adapt(objective.outputs)
    keep = objective.keep(batch)
    parts = objective(LossInputs(paths(batch, objective.outputs, keep), None, batch, keep, objective.counts([batch])))
    silent = {"feature_mse", "token_mse", "attended_token_mse", "attention_mse", "attention_kl"}
    silent |= {"self_correlation", "hidden_correlation", "visual"}
    assert {name for name, value in parts.items() if value == 0} == silent
    objective.total(parts).backward()


def test_an_adapter_stands_only_where_widths_differ_and_is_drawn_from_its_seed(paths):
    readings = Objective(PICTURES).outputs
    (weight,) = paths.adapt(readings, seed=3)  # vision widths and heads are equal here
    assert list(paths.adapters) == ["tokens"] and weight.shape == (24, 16)
    (again,) = paths.adapt(readings, seed=3)
    (other,) = paths.adapt(readings, seed=4)
    assert torch.equal(weight, again) and not torch.equal(weight, other)
    assert paths.adapt(Objective(PICTURES[:2]).outputs) == [] and not paths.adapters
    assert paths.adapt({"student.tokens", "student"}) == []  # nothing to compare it with


def test_adapted_tokens_are_the_student_s_in_the_teacher_s_width(paths, batch):
    paths.adapt({"student.tokens", "teacher.tokens"})
    given = paths(batch, {"student.tokens", "teacher.tokens", "student"}, batch.predicting("answer"))
    assert given["student.tokens"].shape == given["teacher.tokens"].shape
    plain = paths.student.project(paths.student.encode(batch.images))
    expected = plain @ paths.adapters["tokens"].weight.T
    torch.testing.assert_close(given["student.tokens"], expected)


def test_adapters_are_not_saved_with_the_student(paths, tmp_path):
    paths.adapt(Objective(PICTURES).outputs)
    paths.student.save(tmp_path / "model")
    from safetensors import safe_open

    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "adapter" in name]  # noqa: SIM118


def test_progress_is_what_an_interpolated_teacher_follows(paths, tmp_path):
    batch = tiny.batch(paths.student, tmp_path)
    objective = Objective([Term(loss="taid", to="teacher"), Term(name="kd", loss="forward_kl", to="teacher")])
    keep = objective.keep(batch)
    readings = paths(batch, objective.outputs, keep)
    early, late = (
        objective(LossInputs(readings, None, batch, keep, objective.counts([batch]), progress))
        for progress in (0.0, 1.0)
    )
    assert early["taid"] < late["taid"]
    torch.testing.assert_close(late["taid"], late["kd"])


def test_a_stage_trains_its_adapters_and_the_teacher_stays(tmp_path):
    terms = [{"loss": "cross_entropy"}, {"loss": "token_mse", "to": "teacher"}]
    paths, lines, before = trained(tmp_path, objective=terms, steps=2)
    (weight,) = paths.adapters.parameters()
    drawn = weight.detach().clone()
    assert not torch.equal(drawn, before.adapt(Objective(PICTURES).outputs, seed=0)[0])
    assert not any(name.startswith("teacher.") for name in changed(paths, before))
    assert all(line["loss/token_mse"] > 0 for line in lines)


def test_an_interpolated_teacher_moves_with_the_steps(tmp_path):
    """At a learning rate of nearly nothing only the progress changes: the same rows cost more, later."""
    terms = [{"loss": "taid", "to": "teacher", "parameters": {"start": 0.0}}]
    _, lines, _ = trained(tmp_path, objective=terms, steps=4, lr=1e-12)
    values = [line["loss/taid"] for line in lines]
    assert values[0] == pytest.approx(0, abs=1e-6) and values == sorted(values) and values[3] > values[1]


def test_matched_positions_may_be_more_of_one_model(tmp_path):
    """The teacher has nine visual tokens for an image, the student four: only what compares sets takes such terms."""
    student, teacher = tiny.model(16, seed=1), tiny.model(24, seed=2, vision={"patch_size": 8})
    paths = Paths(student, teacher, len(student.inputs.processor.tokenizer))
    terms = [Term(loss=loss, to="teacher", on="image") for loss in ("matched_kl", "cka")]
    terms.append(Term(loss="affinity", to="teacher", on="all"))
    batch, objective = tiny.taught(student, teacher, tmp_path), Objective(terms)
    keep = objective.keep(batch)
    parts = objective(LossInputs(paths(batch, objective.outputs, keep), None, batch, keep, objective.counts([batch])))
    assert all(value > 0 for value in parts.values())
    objective.total(parts).backward()
    assert all(p.grad is not None for p in student.used_parameters("vision").values())


def test_mapped_states_are_the_student_s_in_the_teacher_s_width(paths, batch):
    objective = Objective([Term(loss="contrastive", to="teacher")])
    (weight,) = paths.adapt(objective.outputs)
    keep = objective.keep(batch)
    given = paths(batch, {*objective.outputs, "student.hidden", "teacher.hidden"}, keep)
    torch.testing.assert_close(given["student.mapped"], given["student.hidden"] @ weight.T)
    assert torch.equal(given["teacher.mapped"], given["teacher.hidden"])
