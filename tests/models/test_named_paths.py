"""Paths as data: who sees, who projects, who reads, with which images and which question; and means of paths."""

import copy
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from switchkd_cli.engine.batch import collate
from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.step_memory import FP32, activations
from switchkd_cli.engine.data.rows import Fault
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.chunked import ChunkedObjective
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.recipe.schema import BUILT_IN, PathSpec, Term
from tests.support import tiny
from tests.support.measured import bytes_left, computation, micro_batch, only
from tests.support.registered_losses import losses
from tests.training.test_training import stage

KL = {"name": "kd", "loss": "forward_kl"}
SPELT = {"vision": "teacher", "projector": "teacher", "language": "teacher"}
PATHS = {
    "alias": SPELT,
    "modular": {"model": "teacher", "projector": "student"},
    "eyes_and_mouth": {"model": "student", "projector": "teacher"},
    "still": {"model": "before", "vision": "student"},
    "mixed": {"model": "teacher", "images": "mixed"},
    "mixed_student": {"model": "student", "images": "mixed"},
    "plain": {"model": "student", "prompt": "{question}"},
    "second": {"model": "student", "head": "teacher"},
    "told": {"model": "student", "prompt": "Think of {answer}. {question}"},
    "told_teacher": {"model": "teacher", "prompt": "Think of {answer}. {question}"},
}
KNOWN = {**BUILT_IN, **{name: PathSpec.model_validate(path) for name, path in PATHS.items()}}


def pair(teacher=None, **more):
    """A student and a teacher of one build, with the paths above."""
    student, teacher = tiny.model(seed=1), teacher or tiny.model(seed=2)
    return Paths(student, teacher, len(student.inputs.tokenizer), known=KNOWN, **more)


def read(paths, folder, prompts=(), turns="chained", which=None):
    """A batch with the readings of these paths."""
    data = tiny.conversations(paths.student, folder, turns, which)
    for name in prompts:
        data = data.with_teacher(data.inputs, readers=(name,), prompt=KNOWN[name].prompt)
    return tiny.together(paths.student, [data[i] for i in range(len(data))])


def logits_of(paths, batch, *names, on="answer"):
    with torch.no_grad():
        return paths(batch, names, batch.predicting_in_all(on))


def with_paths(**changes):
    made = stage(**changes)
    made._known = {**KNOWN, **changes.get("means", {})}
    return made


def calls(paths, names, batch):
    """Return how often each module of each model was called."""
    counted = {}
    for model in ("student", "teacher"):
        of = paths.model(model)
        for part, module in (("V", of.core.vision_tower), ("P", of.core.multi_modal_projector), ("L", of.language)):
            name = f"{part} of {model}"
            module.register_forward_hook(lambda *_, name=name: counted.update({name: counted.get(name, 0) + 1}))
    logits_of(paths, batch, *names)
    return counted


def test_an_all_teacher_path_is_the_teacher_to_the_bit_and_costs_nothing(tmp_path):
    paths = pair()
    batch = read(paths, tmp_path)
    logits = logits_of(paths, batch, "teacher", "alias")
    assert torch.equal(logits["alias"], logits["teacher"])
    assert calls(pair(), ("teacher", "alias"), batch) == {"V of teacher": 1, "P of teacher": 1, "L of teacher": 1}


def test_what_paths_share_is_computed_once(tmp_path):
    paths = pair()
    names = ("student", "teacher", "switch", "reverse", "modular", "eyes_and_mouth")
    found = calls(paths, names, read(paths, tmp_path))
    # P_S reads both towers, P_T too; L_S reads student, reverse and its own tower through P_T, L_T the other three
    assert found == {
        "V of student": 1, "V of teacher": 1, "P of student": 2, "P of teacher": 2, "L of student": 3, "L of teacher": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("reverse", {"projector", "language"}),
        ("modular", {"projector"}),
        ("eyes_and_mouth", {"vision", "language"}),
        ("still", {"vision"}),
        ("blind_student", {"vision", "projector", "language"}),
        ("mixed_student", {"vision", "projector", "language"}),
        ("told", {"vision", "projector", "language"}),
    ],
)
def test_a_gradient_reaches_the_student_s_modules_of_a_path_and_nothing_else(tmp_path, name, reached):
    paths = pair().train()
    paths.remember_student()
    batch = read(paths, tmp_path, [name] if KNOWN[name].prompt else ())
    logits = paths(batch, {name}, batch.predicting_in_all("answer"))[name]
    logits.log_softmax(-1)[:, 7].sum().backward()
    assert KNOWN[name].trains - {"adapter"} == reached
    trained = {id(p) for part in reached for p in paths.student.used_parameters(part).values()}
    everything = [*paths.parameters(), *(p for model in paths.frozen.values() for p in model.parameters())]
    assert {id(p) for p in everything if p.grad is not None} == trained


def test_a_second_head_reads_the_same_states_behind_a_trained_map_that_is_dropped(tmp_path):
    """Dual-head distillation: the first head learns from the labels alone, both teach what is in front of them."""
    paths = pair(tiny.model(24, seed=2)).train()
    terms = [Term(loss="cross_entropy"), Term.model_validate({**KL, "of": "second", "to": "teacher"})]
    objective, batch = Objective(terms), read(paths, tmp_path)
    (mapping,) = paths.adapt(objective.outputs, seed=3)
    keep = batch.predicting_in_all("answer")
    of_student = calls(paths, ("student", "second"), batch)["L of student"]
    given = paths(batch, {"student.hidden", "second", "second.hidden"}, keep)
    mapped = given["student.hidden"] @ mapping.T
    torch.testing.assert_close(given["second"], paths.teacher.logits(mapped)[:, : paths.vocabulary])
    assert of_student == 1 and torch.equal(given["second.hidden"], mapped)
    chunked = ChunkedObjective(Objective(terms[1:]))
    counts = objective.counts([batch])
    loss, _ = chunked(LossInputs(paths(batch, chunked.outputs, keep), paths.heads(), batch, keep, counts))
    loss.backward()
    expected = losses.forward_kl(logits_of(paths, batch, "teacher")["teacher"], given["second"]).mean()
    torch.testing.assert_close(loss, expected)
    reached = {
        id(p) for part in ("vision", "projector", "language") for p in paths.student.used_parameters(part).values()
    }
    assert {id(p) for p in paths.parameters() if p.grad is not None} == reached | {id(mapping)}
    assert paths.adapt({"student"}) == [] and not paths.adapters


@pytest.mark.parametrize("name", ["before", "teacher", "blind", "alias", "mixed", "told_teacher"])
def test_frozen_paths_keep_no_graph(tmp_path, name):
    paths = pair()
    paths.remember_student()
    batch = read(paths, tmp_path, [name] if KNOWN[name].prompt else ())
    assert KNOWN[name].trains == set()
    assert not paths(batch, {name}, batch.predicting_in_all("answer"))[name].requires_grad


def test_text_alone_gives_the_student_s_projector_a_gradient_of_zero_behind_the_teacher_s_tower(tmp_path):
    paths = pair()
    batch = read(paths, tmp_path, which=[tiny.row("t", None, ("Say hi.", "hi there"))])
    logits = paths(batch, {"teacher", "modular"}, batch.predicting("answer"))
    assert torch.equal(logits["modular"], logits["teacher"])
    logits["modular"].sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in paths.student.used_parameters("projector").values())


def test_blind_paths_see_what_a_batch_with_blank_images_shows(tmp_path):
    paths = pair()
    batch = read(paths, tmp_path)
    blind = logits_of(paths, batch, "blind", "blind_student")
    grey = logits_of(paths, batch.with_blank_images(), "teacher", "student")
    assert torch.equal(blind["blind"], grey["teacher"]) and torch.equal(blind["blind_student"], grey["student"])


def test_mixed_images_are_one_mixture_for_every_path_and_follow_from_the_step(tmp_path):
    paths = pair(copy.deepcopy(tiny.model(seed=1)))
    pictured = [row for row in tiny.rows(tmp_path) if "image" in row]
    batch = replace(read(paths, tmp_path, which=pictured), mixture="0/distill/3")
    first, again = (logits_of(paths, batch, "mixed", "mixed_student", "student") for _ in range(2))
    assert torch.equal(first["mixed"], first["mixed_student"]) and torch.equal(first["mixed"], again["mixed"])
    other = logits_of(paths, replace(batch, mixture="0/distill/4"), "mixed")
    assert not torch.equal(first["mixed"], other["mixed"]) and not torch.equal(first["mixed"], first["student"])
    here, after = batch.images[0]["pixel_values"], batch.images[1]["pixel_values"]
    share = ((batch.shown("mixed", "0")[0]["pixel_values"] - after) / (here - after)).nanmedian()
    assert 0 <= share < 1
    torch.testing.assert_close(batch.shown("mixed", "0")[0]["pixel_values"], share * here + (1 - share) * after)


def test_mixed_images_are_the_same_however_a_step_is_split(tmp_path):
    data = tiny.conversations(tiny.model(), tmp_path)
    examples = [data[i % len(data)] for i in range(6)]
    of_step, *parts = (
        collate(some, pad_token=0).shown("mixed", "0") for some in (examples, examples[:2], examples[2:])
    )
    for one, other in zip(of_step, chain.from_iterable(parts), strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_mapped_states_behind_another_head_are_as_wide_as_its_model_s(tmp_path):
    paths = pair(tiny.model(24, seed=2)).train()
    paths.adapt({"second.mapped", "teacher.mapped"})
    batch = read(paths, tmp_path)
    given = paths(batch, {"second.mapped", "teacher.mapped"}, batch.predicting_in_all("answer"))
    assert given["second.mapped"].shape == given["teacher.mapped"].shape


@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_a_prompt_that_is_the_question_changes_nothing(tmp_path, turns):
    paths = pair()
    batch = read(paths, tmp_path, ["plain"], turns)
    logits = logits_of(paths, batch, "student", "plain")
    assert torch.equal(logits["student"], logits["plain"])


@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_answers_after_another_prompt_are_compared_token_by_token(tmp_path, turns):
    paths = pair()
    batch = read(paths, tmp_path, ["told"], turns)
    told = batch.reading("told")
    tokens = paths.student.inputs.tokenizer
    assert "Think of dog. What is it?" in tokens.decode(told.input_ids[0])
    assert torch.equal(told.targets[told.predicting("answer")], batch.targets[batch.predicting("answer")])
    assert told.images == batch.images and int(told.image.sum()) == int(batch.image.sum())
    written = [
        tiny.row(row["id"], row.get("image"), *((f"Think of {a}. {q}", a) for q, a in asked))
        for row, asked in zip(tiny.rows(tmp_path), ASKED, strict=True)
    ]
    alone = read(paths, tmp_path, which=written, turns=turns)
    assert torch.equal(logits_of(paths, batch, "told")["told"], logits_of(paths, alone, "student")["student"])


ASKED = [
    [("What is it?", "dog"), ("How many?", "three red apples")],
    [("Say hi.", "hi there")],
    [("Where?", "at the top left"), ("Yes?", "no"), ("What?", "a cat")],
    [("What is it?", "a bus")],
]


def test_a_truncated_example_is_truncated_behind_the_same_answer_token(tmp_path):
    data = tiny.conversations(tiny.model(), tmp_path)
    data.max_length = len(data[2].input_ids) - 5
    told = data.with_teacher(data.inputs, readers=("told",), prompt=KNOWN["told"].prompt)
    example = told[2]
    (other,) = example.others.values()
    assert example.cut and len(other.input_ids) > len(example.input_ids)
    assert torch.equal(other.labels[other.labels >= 0], example.labels[example.labels >= 0])


def test_an_answer_that_a_prompt_changes_makes_a_row_unusable(tmp_path, monkeypatch):
    data = tiny.conversations(tiny.model(), tmp_path)
    data = data.with_teacher(data.inputs, readers=("plain",), prompt="{question}")
    (reader,) = data.others.values()
    monkeypatch.setattr(
        reader, "_prompted", lambda row: replace(row, exchanges=tuple((q, "no") for q, _ in row.exchanges))
    )
    with pytest.raises(Fault, match="answers are other tokens"):
        data.example(0)


def computed(paths, terms, means, batch, way=None):
    """Return a term's value at each position, by name, and the inputs."""
    objective = Objective([Term.model_validate(term) for term in terms], means=means)
    keep, found = objective.keep(batch), {}
    way = way(objective) if way else objective
    outputs = paths(batch, way.outputs, keep)
    inputs = LossInputs(outputs, paths.heads(), batch, keep, objective.counts([batch]))
    way(inputs, on_values=lambda name, values, *_: found.setdefault(name, []).append(values.detach()))
    return {name: torch.cat(values) for name, values in found.items()}


def test_the_mean_of_identical_teachers_is_one_of_them(tmp_path):
    paths = pair(teachers={"expert": tiny.model(seed=2)})
    paths.known = {**KNOWN, "expert": PathSpec.model_validate({"model": "expert"})}
    means = {"team": PathSpec(mean=("teacher", "expert"))}
    found = computed(
        paths, [{**KL, "to": "teacher"}, {**KL, "name": "both", "to": "team"}], means, read(paths, tmp_path)
    )
    torch.testing.assert_close(found["both"], found["kd"])


def test_by_loss_each_example_weighs_its_teachers_by_their_own_cross_entropy(tmp_path):
    paths = pair()
    batch = read(paths, tmp_path, ["told_teacher"])
    means = {"team": PathSpec(mean=("teacher", "blind", "told_teacher"), by="loss", temperature=0.05)}
    found = computed(paths, [{**KL, "to": "team"}], means, batch)["kd"]
    logits = {name: of.double() for name, of in logits_of(paths, batch, *means["team"].mean, "student").items()}
    rows, targets = batch.predicting("answer").nonzero()[:, 0], batch.targets[batch.predicting("answer")]
    expected = []
    for row in rows.unique():
        here = rows == row
        p = {name: of[here].softmax(-1) for name, of in logits.items()}
        at = torch.arange(int(here.sum())), targets[here]
        weight = torch.stack([p[name][at].log().mean() / 0.05 for name in means["team"].mean]).softmax(0)
        mean = sum(w * p[name] for w, name in zip(weight, means["team"].mean, strict=True))
        expected.append((mean * (mean.log() - p["student"].log())).sum(-1))
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by", ["equal", "loss"])
def test_chunks_give_what_all_logits_give(tmp_path, monkeypatch, by):
    paths = pair()
    batch = read(paths, tmp_path, ["told", "told_teacher"])
    means = {"team": PathSpec(mean=("teacher", "told_teacher"), by=by)}
    terms = [
        {**KL, "to": "team"},
        {**KL, "name": "own", "to": "told"},
        {"name": "ce", "loss": "cross_entropy", "on": "text"},
    ]
    dense = computed(paths, terms, means, batch)
    monkeypatch.setattr("switchkd_cli.engine.lm_head.LOGITS", 5 * paths.vocabulary)
    chunked = computed(paths, terms, means, batch, ChunkedObjective)
    assert chunked.keys() == dense.keys()
    for name, values in dense.items():
        torch.testing.assert_close(chunked[name], values, rtol=1e-5, atol=1e-6)


def stepped(trainer, batch, count):
    for _ in range(count):
        trainer.step([batch], diagnosed=True)
    return trainer


def test_before_is_the_student_of_the_stage_s_start_also_after_a_resume(tmp_path):
    terms = [
        {"name": "ce", "loss": "cross_entropy"},
        {**KL, "to": "before"},
        {**KL, "name": "mix", "of": "mixed_student", "to": "mixed"},
    ]
    made = with_paths(objective=terms)
    batch = read(pair(), tmp_path)
    whole = Trainer(made, pair(), 4, "fp32")
    assert whole.step([batch], diagnosed=True)[0]["loss/kd"] == pytest.approx(0.0, abs=1e-7)
    stepped(whole, batch, 1)
    begun, state = tiny.model(seed=1).state_dict(), copy.deepcopy(whole.state_dict())
    stepped(whole, batch, 2)
    resumed = Trainer(made, pair(), 4, "fp32")
    resumed.load_state_dict(state)
    stepped(resumed, batch, 2)
    for trainer in (whole, resumed):
        before = trainer.paths.frozen["before"].state_dict()
        assert all(torch.equal(before[name], of) for name, of in begun.items())
    ours, theirs = whole.paths.state_dict(), resumed.paths.state_dict()
    assert all(torch.equal(ours[name], of) for name, of in theirs.items())
    whole.close()
    assert "before" not in whole.paths.frozen


@pytest.mark.parametrize(
    "names",
    [
        ("student", "teacher", "reverse"),
        ("modular",),
        ("eyes_and_mouth", "switch"),
        ("blind_student", "blind"),
        ("student", "blind_student"),
    ],
)
def test_the_plan_counts_each_path_by_its_modules(tmp_path, names):
    paths = pair().train()
    train = frozenset(part for name in names for part in KNOWN[name].trains - {"adapter"})
    only(paths, train)
    rows = [tiny.row(n, tiny.picture(tmp_path, f"{n}.png", 1), ("What is it?", "a dog")) for n in "ab"]
    batch = read(paths, tmp_path, which=rows)
    keep, computed = batch.predicting("answer"), computation(paths, names, train)
    left = bytes_left(lambda: paths(batch, set(names), keep), paths, paths.teacher)
    planned = activations(micro_batch(batch), computed, FP32)
    assert planned.saved + planned.cast == pytest.approx(left, rel=0.05)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = paths(batch, set(names), keep)
        sum(logits[name].square().sum() for name in names if KNOWN[name].trains).backward()
    assert flops.step(micro_batch(batch), computed) == counter.get_total_flops()
