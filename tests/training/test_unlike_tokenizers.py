"""A student and a teacher that read a row as tokens of their own: what is compared, on what, and what learns from it."""

import copy
import json
import shutil
from functools import partial
from math import isfinite

import pytest
import torch

from switchkd_cli import registry
from switchkd_cli.engine.batch import IGNORE, collate
from switchkd_cli.engine.build import check_pair
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.engine.data.turns import form, llava_row
from switchkd_cli.engine.losses.dbild import dbild
from switchkd_cli.engine.paths import FeatureAdapter, Paths
from switchkd_cli.engine.token_map import TokenMap
from switchkd_cli.engine.training.chunked import ChunkedObjective
from switchkd_cli.engine.training.diagnostics import Diagnostics
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import Misfit
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.named_files import ASSETS
from switchkd_cli.recipe.schema import Term
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RunOptions
from tests.support import tiny, unlike
from tests.support.shipped_recipes import RECIPES

dense_objective = partial(ChunkedObjective, dense=True)
SPANS = [name for name in registry.LOSSES if registry.signature("loss", name).of_spans]
OF_POSITIONS = [
    name
    for name in registry.LOSSES
    if (signature := registry.signature("loss", name)).reads[0][0] == "teacher" or name == "decoupled_kd"
    if not (signature.of_images or signature.of_spans) and {*signature.sides} <= {"teacher", "student"}
]
VSD = Term(name="vsd", loss="dbild", of="switch", to="teacher", weight=2.0)
CE = Term(name="ce", loss="cross_entropy")


def by_bytes(loss, **fields):
    return Term(loss=loss, to="teacher", alignment="bytes", **fields)


def token_map(student, teacher):
    tokenizers = student.inputs.tokenizer, teacher.inputs.tokenizer
    return TokenMap(*tokenizers, tuple(of.eos_token_id for of in tokenizers))


def paired(student, teacher):
    return Paths(student, teacher, len(student.inputs.tokenizer), token_map(student, teacher)).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    kinds = {"bpe": 16, "pieces": 24, "bytes": 16}
    return {
        kind: unlike.model(tmp_path_factory.mktemp(kind), unlike.tokenizer(kind), width, seed=width)
        for kind, width in kinds.items()
    }


@pytest.fixture(scope="module")
def pair(models):
    return paired(models["bpe"], models["pieces"])


def rows(folder):
    chinese = tiny.row("e", tiny.picture(folder, "e.png", 4), ("这是什么?", "你好，狗🙂👍🏽"), ("Yes?", "é no "))
    return [*tiny.rows(folder), chinese]


@pytest.fixture(params=["chained", "independent"])
def batch(pair, tmp_path, request):
    return together(pair.student, pair.teacher, tmp_path, request.param)


def together(student, teacher, folder, turns="chained", which=slice(None)):
    data = unlike.conversations(student, teacher, rows(folder), folder, turns=turns)
    return tiny.together(student, [data.example(i) for i in range(len(data))][which])


def computed(how, paths, batch, objective, counts=None, look=None):
    """Return total, parts and all gradients."""
    paths.zero_grad()
    way, keep = how(objective), objective.keep(batch)
    counts = counts or objective.counts([batch])
    total, parts = way(LossInputs(paths(batch, way.outputs, keep), paths.heads(), batch, keep, counts), look)
    total.backward()
    moved = {name: p.grad.clone() for name, p in paths.named_parameters() if p.grad is not None}
    return total.detach(), {name: value.detach() for name, value in parts.items()}, moved


@pytest.mark.parametrize("loss", OF_POSITIONS)
@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_equal_tokenizers_give_bit_equal_losses_by_bytes_and_by_positions(loss, turns, tmp_path):
    student, teacher = tiny.model(seed=1), tiny.model(seed=2)
    plain = Paths(student, teacher, len(student.inputs.tokenizer)).eval()
    usual, own = tiny.batch(student, tmp_path, turns), tiny_pair(student, teacher, tmp_path, turns)
    expected = computed(dense_objective, plain, usual, Objective([Term(loss=loss, to="teacher"), VSD, CE]))
    both = paired(student, teacher)
    got = computed(dense_objective, both, own, Objective([by_bytes(loss), VSD, CE], both.tokens))
    assert torch.equal(got[0], expected[0])
    assert got[1].keys() == expected[1].keys() and all(torch.equal(got[1][name], expected[1][name]) for name in got[1])
    for name in expected[2]:  # autograd adds them up in another order
        torch.testing.assert_close(got[2][name], expected[2][name], rtol=1e-5, atol=1e-8, msg=name)


def tiny_pair(student, teacher, folder, turns):
    data = unlike.conversations(student, teacher, tiny.rows(folder), folder, turns=turns)
    return tiny.together(student, [data.example(i) for i in range(len(data))])


@pytest.mark.parametrize("loss", [*SPANS, "dbild", "forward_kl", "decoupled_kd", "reverse_kl"])
def test_a_teacher_whose_ids_are_in_another_order_gives_equal_losses(loss, models, tmp_path):
    student, teacher = models["bytes"], copy.deepcopy(models["bpe"])
    tokenizer, order = unlike.permuted(teacher.inputs.tokenizer)
    other = unlike.model(tmp_path / "other", tokenizer, seed=5)
    state = copy.deepcopy(teacher.model.state_dict())
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.zeros_like(state[name]).index_copy(0, order, state[name])
    other.model.load_state_dict(state)
    found = []
    for of in (teacher, other):
        paths = paired(student, of)
        objective = Objective([by_bytes(loss), VSD], paths.tokens)
        found.append(computed(dense_objective, paths, together(student, of, tmp_path), objective))
    assert found[0][1][loss] != 0
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-4, atol=1e-7)


def test_vsd_is_that_of_the_teachers_own_tokens(pair, tmp_path, batch):
    """By hand: the teacher's rows alone, and the student's features through the teacher's projector."""
    turns = "chained" if batch.attention.ndim == 2 else "independent"
    own = Conversations(Rows(rows(tmp_path), llava_row, images=tmp_path, turns=turns), pair.teacher.inputs)
    theirs = collate([own.example(i) for i in range(len(own))], pad_token=0)
    keep, teacher = theirs.predicting("answer"), pair.teacher
    logits = {}
    for name, eyes in (("teacher", teacher), ("switch", pair.student)):
        tokens = teacher.project(eyes.encode(theirs.images), theirs.images)
        hidden = teacher.hidden_states(theirs, tokens, keep)
        logits[name] = teacher.logits(hidden)[:, : len(teacher.inputs.tokenizer)]
    expected = dbild(logits["teacher"].detach(), logits["switch"]).mean()
    _, parts, _ = computed(dense_objective, pair, batch, Objective([VSD], pair.tokens))
    torch.testing.assert_close(parts["vsd"], expected.detach(), rtol=1e-5, atol=1e-8)


def test_each_side_learns_its_own_end_token(pair, batch):
    for side, of in ((batch, pair.student), (batch.reading("teacher"), pair.teacher)):
        tokenizer, answers = of.inputs.tokenizer, side.labels[side.labels != IGNORE]
        assert (answers == tokenizer.eos_token_id).sum() == 9  # answers of these rows
        assert "你好，狗🙂👍🏽" in tokenizer.decode(answers)
    assert batch.aligned[:, 0].equal(batch.aligned[:, 1])


def test_the_teacher_reads_as_many_image_tokens_as_its_projector_gives(pair, batch):
    assert (batch.reading("teacher").input_ids == pair.teacher.inputs.image_token).sum() == 4 * len(batch.images)
    assert batch.reading("teacher").image.sum() == 4 * len(batch.images)
    for ours, theirs in zip(
        batch.images, batch.reading("teacher").images, strict=True
    ):  # each processor's own, here alike
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


def test_spans_of_a_rejected_answer_are_not_counted(pair):
    row = {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "three"}]}
    rows = Rows([row | {"id": "p", "rejected_response": "two red apples"}], form("ms_swift").row)
    data = Conversations(rows, pair.student.inputs).with_teacher(pair.teacher.inputs, by_bytes=True)
    batch = tiny.together(pair.student, [data[0]])
    counts = Objective([by_bytes(SPANS[0])], pair.tokens).counts([batch])
    answer = batch.predicted_spans[batch.predicting("answer")]
    assert counts["spans"] == len(answer[answer >= 0].unique()) < len(batch.predicted_spans.unique()) - 1


@pytest.mark.parametrize("positions", [1, 40])
@pytest.mark.parametrize("loss", [*SPANS, "dbild", "forward_kl", "decoupled_kd", "sinkhorn", "hidden_correlation"])
def test_chunks_have_the_dense_objectives_values_and_gradients(pair, batch, loss, positions, monkeypatch):
    objective = Objective([CE, by_bytes(loss), VSD], pair.tokens)
    pair.adapt(objective.outputs)
    whole = computed(dense_objective, pair, batch, objective)
    monkeypatch.setattr("switchkd_cli.engine.lm_head.LOGITS", positions * max(pair.columns.values()))
    parted = computed(ChunkedObjective, pair, batch, objective)
    torch.testing.assert_close(parted[:2], whole[:2], rtol=1e-5, atol=1e-7)
    assert parted[2].keys() == whole[2].keys()
    for name in whole[2]:
        torch.testing.assert_close(parted[2][name], whole[2][name], rtol=1e-4, atol=1e-6, msg=name)


def test_towers_and_tokenizers_may_both_be_unlike(models, tmp_path, monkeypatch):
    student, vision = models["bpe"], {"hidden_size": 32, "patch_size": 8}
    teacher = unlike.model(tmp_path / "teacher", unlike.tokenizer("pieces"), 24, seed=3, vision=vision)
    adapter = FeatureAdapter(16, 32, sides=(2, 3))
    tokens = token_map(student, teacher)
    both = Paths(student, teacher, len(student.inputs.tokenizer), tokens, adapter=adapter).eval()
    batch = together(student, teacher, tmp_path)
    assert [int(of.image.sum()) for of in batch.readings] == [4 * len(batch.images), 9 * len(batch.images)]
    objective = Objective([CE, by_bytes("alm"), by_bytes("forward_kl"), VSD], both.tokens)
    whole = computed(dense_objective, both, batch, objective)
    monkeypatch.setattr("switchkd_cli.engine.lm_head.LOGITS", 20 * max(both.columns.values()))
    parted = computed(ChunkedObjective, both, batch, objective)
    torch.testing.assert_close(parted[:2], whole[:2], rtol=1e-5, atol=1e-7)
    assert all(value > 0 for value in whole[1].values())
    assert all(whole[2][f"switch_adapter.maps.0.{name}"].any() for name in ("weight", "bias"))


@pytest.mark.parametrize("loss", [*SPANS, "dbild"])
def test_the_gradient_reaches_the_student_alone(pair, batch, loss):
    _, _, moved = computed(ChunkedObjective, pair, batch, Objective([by_bytes(loss)], pair.tokens))
    assert any(moved[name].abs().sum() > 0 for name in moved if "language_model" in name)
    assert any(moved[name].abs().sum() > 0 for name in moved if "vision_tower" in name)
    assert all(p.grad is None for p in pair.teacher.parameters())


@pytest.mark.parametrize("loss", [*SPANS, "forward_kl"])
def test_no_split_into_micro_batches_changes_the_gradient(pair, tmp_path, loss):
    objective = Objective([CE, by_bytes(loss), VSD], pair.tokens)
    parts = [together(pair.student, pair.teacher, tmp_path, which=part) for part in (slice(2), slice(2, 5))]
    whole = computed(dense_objective, pair, together(pair.student, pair.teacher, tmp_path), objective)[2]
    counts = objective.counts(parts)
    each = [computed(ChunkedObjective, pair, part, objective, counts)[2] for part in parts]
    for name in whole:
        torch.testing.assert_close(sum(of[name] for of in each), whole[name], rtol=1e-4, atol=1e-7, msg=name)


def test_shares_of_bytes_and_of_tokens_that_are_compared(pair, batch, tmp_path):
    objective = Objective([by_bytes("forward_kl")], pair.tokens)
    shares = objective.aligned(objective.counts([batch]))
    assert shares["aligned/bytes"] == 1.0
    assert 0 < shares["aligned/tokens"] < 1
    alike = Objective([by_bytes("forward_kl")], token_map(pair.student, pair.student))
    same = together(pair.student, pair.student, tmp_path)
    assert alike.aligned(alike.counts([same])) == {"aligned/bytes": 1.0, "aligned/tokens": 1.0}


def test_diagnostics_compare_only_what_reads_the_same_tokens(pair, batch):
    found = Diagnostics([CE, by_bytes("dbild"), VSD])
    objective = Objective([CE, by_bytes("dbild"), VSD], pair.tokens)
    computed(ChunkedObjective, pair, batch, objective, look=found.add)
    figures = found.figures()
    assert {"teacher_ce", "switch_gap", "agreement/switch", "k/vsd/teacher/mean"} <= figures.keys()
    assert not {"student_ce", "kl/student", "agreement/student"} & figures.keys()
    assert not [name for name in figures if name.startswith("k/dbild")]


def test_equal_bytes_are_one_token_whatever_their_names_and_so_are_the_ends(models):
    student, teacher = (models[kind].inputs.tokenizer for kind in ("bpe", "pieces"))
    found = token_map(models["bpe"], models["pieces"])
    names = {student.convert_ids_to_tokens(a): teacher.convert_ids_to_tokens(b) for a, b in found.shared.T.tolist()}
    assert names["<|im_end|>"] == "<end>"
    assert names["Ġred"] == "▁red" if "Ġred" in names else True
    assert names["Ġ"] == "▁" and names["a"] == "a" and names["b"] == "<0x62>" and names["ä"] == "<0xE4>"


def test_a_students_token_begins_with_a_piece_of_the_teachers(models):
    student, teacher = models["bpe"].inputs.tokenizer, models["bytes"].inputs.tokenizer
    pieces = token_map(models["bpe"], models["bytes"]).first_pieces
    by_name = {
        student.convert_ids_to_tokens(i): teacher.convert_ids_to_tokens(int(p)) for i, p in enumerate(pieces) if p >= 0
    }
    longest = max((name for name in by_name if "<" not in name), key=len)
    assert len(longest) > 1 and by_name[longest] == longest[0]
    assert by_name["a"] == "a" and by_name["<|im_end|>"] == "<eos>"


FRESH = "{fresh: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,"
FRESH += " num_key_value_heads: 2, max_position_embeddings: 2048, tie_word_embeddings: true}}"


def recipe(row, *overrides):
    """The shipped recipe, with an untrained reader of byte-level BPE."""
    (run,) = load_rows(RECIPES / "unlike_tokenizer.yaml", [row], overrides=[f"student.language={FRESH}", *overrides])
    return run


def test_the_shipped_recipe_maps_the_playgrounds_two_vocabularies():
    pair = check_pair(recipe("switch-kd").config, with_teacher=True)
    assert (pair.vocabulary.shared, pair.vocabulary.own) == (561, 1872)
    found, ours, theirs = pair.tokens(), pair.student.inputs.tokenizer, pair.teacher.inputs.tokenizer
    names = {ours.convert_ids_to_tokens(a): theirs.convert_ids_to_tokens(b) for a, b in found.shared.T.tolist()}
    assert names["<|end|>"] == "<|end|>" and names["Ġapple"] == "▁apple" and names["a"] == "<0x61>"


POSITIONS = ["stages.distill.objective.align.alignment=positions", "stages.distill.objective.align.loss=forward_kl"]
POSITIONS += ["stages.distill.objective.align.parameters={}"]


def test_positions_of_unlike_tokens_are_refused_with_what_to_add():
    with pytest.raises(Misfit) as refused:
        check_pair(recipe("switch-kd", *POSITIONS).config, with_teacher=True)
    assert refused.value.code == 2 and refused.value.hint.startswith("add `alignment: bytes` to align; or ")
    assert [fact.name for fact in refused.value.facts if fact.verdict == "bytes"] == ["vocabulary"]


def test_all_that_needs_common_tokens_is_refused_at_once():
    own, terms = "stages.distill.answers={own: 0.5}", "{loss: cross_entropy}, {loss: dbild, of: switch, to: teacher}"
    changed = own, f"stages.distill.objective=[{terms}]", "checkpoints.best=kl/student"
    with pytest.raises(UserError) as refused:
        check_pair(recipe("switch-kd", *changed).config, with_teacher=True)
    assert refused.value.problems == (
        "stages.distill.answers: own answers can't be written for the teacher: student and teacher read their own tokens",
        "kl/student needs common tokens: student and teacher read their own tokens",
    )
    assert refused.value.hint == "stages.distill.answers=null; choose by loss"


@pytest.mark.parametrize(
    "figure", ["checkpoints.best=kl/student", "stages.distill.validation.monitor=validation/agreement"]
)
def test_a_figure_that_needs_common_tokens_chooses_nothing(figure):
    with pytest.raises(UserError, match="needs common tokens"):
        check_pair(recipe("switch-kd", figure).config, with_teacher=True)


def test_a_teacher_that_reads_its_own_tokens_needs_a_chat_template(tmp_path):
    shutil.copytree(ASSETS / "teacher-small", tmp_path / "teacher")
    (tmp_path / "teacher" / "chat_template.jinja").unlink()
    overrides = [f"teacher.checkpoint={tmp_path / 'teacher'}", "evaluation=null"]
    with pytest.raises(UserError, match="teacher: no chat template"):
        check_pair(recipe("vsd", *overrides).config, with_teacher=True)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["switch-kd", "vsd", "sft"])
def test_two_steps_of_each_row_of_the_recipe(row, tmp_path):
    small = [f"stages.{stage}.{field}" for stage in ("pretrain", "distill") for field in ("steps=2", "batch=4")]
    small += [f"data.{name}.parameters.pictures=6" for name in ("captions", "instructions", "held_out")]
    run = recipe(row, *small, "stages.distill.micro_batch=2", "evaluation=null", "check=true")
    folder = launch.run_one(run, RunOptions(out=tmp_path))
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    steps = [line for line in lines if line.get("stage") == "distill" and "step" in line and "loss" in line]
    assert len(steps) == 2 and folder.info()["status"] == "finished"
    for line in steps:
        assert all(isfinite(value) for name, value in line.items() if name.startswith("loss"))
        assert line.get("aligned/bytes") == (1.0 if row == "switch-kd" else None)
