"""The student's own answers in place of the data's: which, how they are sampled and written, and what learns from them."""

import pytest
import torch

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.data.conversation import OF_TEACHER
from switchkd_cli.engine.data.image import images_of
from switchkd_cli.engine.evaluation.generate import GreedyModel
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.loop import Loop
from switchkd_cli.engine.training.own_answers import Sampled, answer_spans, gets_own, prompts
from switchkd_cli.recipe.schema import BUILT_IN, PathSpec, Stage
from tests.support import tiny

CE = {"name": "ce", "loss": "cross_entropy"}
KL = {"name": "kl", "loss": "reverse_kl", "to": "teacher"}
VSD = {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"}
ALL_OWN = {"own": 1.0, "max_tokens": 5}


def loop(folder, *, turns="chained", lines=None, limit=None, student=None, **changes):
    settings = {"name": "distill", "data": "rows", "train": ["vision", "projector", "language"], "lr": 1e-3}
    settings |= {"batch": 4, "steps": 2, "objective": [KL], "answers": ALL_OWN, "grad_clip": None}
    student = student or tiny.model(seed=1)
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.tokenizer))
    data = tiny.conversations(student, folder, turns)
    data.max_length = limit
    stage = Stage.model_validate(settings | changes)
    return Loop(stage, paths, data, seed=3, precision="fp32", log=(lines if lines is not None else []).append)


def group(of, micro=4):
    """The first step's examples as micro-batches."""
    examples = [of.data[i] for i in of.rounds.left(0)[:4]]
    return [tiny.together(of.trainer.paths.student, examples[i : i + micro]) for i in range(0, 4, micro)]


def answered(of, micro=4, step=0):
    """Its examples with their own answers, and the figures."""
    of.trainer.micro_batch = micro
    batches, figures = of.answers(group(of, micro), step)
    return [example for batch in batches for example in batch.examples()], figures


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.5, 1.0])
def test_the_share_is_spread_evenly_over_the_order(share):
    own = [gets_own(number, share) for number in range(400)]
    assert all(abs(sum(own[:n]) - share * n) < 1 for n in range(1, 400))


@pytest.mark.parametrize("turns", ["chained", "independent"])
@pytest.mark.parametrize("published", [{}, {"repetition_penalty": 1.3, "min_new_tokens": 4}])
def test_greedy_answers_are_those_of_an_evaluation(tmp_path, turns, published):
    of = loop(tmp_path, turns=turns, answers=ALL_OWN | {"temperature": 0.0})
    of.trainer.paths.student.model.generation_config.update(**published)
    examples, _ = answered(of)
    reader = GreedyModel(of.trainer.paths.student)
    compared = 0
    for example in examples:
        row = next(row for row in of.data.rows if row.id == example.id)
        answers = [example.input_ids[slice(*span)] for span in answer_spans(example.labels)]
        # an evaluation asks single questions; of a chained conversation only the first is one
        for (question, _), answer in list(zip(row.exchanges, answers, strict=True))[
            : None if turns != "chained" else 1
        ]:
            images = images_of(row, of.data.rows)
            with torch.inference_mode():
                _, expected = reader.generate([reader._text(question, len(images))], [images], 5)
            assert answer.tolist() == expected[0].tolist()
            compared += 1
    assert compared == (7 if turns == "independent" else 4)


def test_sampled_tokens_have_the_models_probabilities():
    scores = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).expand(20_000, 6)
    numbers = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(1))
    for temperature in (1.0, 0.5):
        left = Sampled(numbers, 3, temperature, torch.tensor([2]))(torch.zeros(20_000, 3), scores)
        found = left.argmax(1).bincount(minlength=6) / 20_000
        expected = (scores[0] / temperature).index_fill(0, torch.tensor([2]), -torch.inf).softmax(0)
        assert found[2] == 0 and (found - expected).abs().max() < 0.02
    assert Sampled(numbers, 3, 0.0, torch.tensor([2]))(torch.zeros(20_000, 3), scores)[0].argmax() == scores[0].argmax()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_drawn_from_the_students_own_distribution(tmp_path, temperature):
    """Whatever a published checkpoint's generation config says, such as a penalty for tokens of the prompt."""
    plain, penalised = (loop(tmp_path, answers=ALL_OWN | {"temperature": temperature}) for _ in range(2))
    published = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 1,
        "do_sample": True,
        "top_k": 1,
        "min_new_tokens": 5,
    }
    penalised.trainer.paths.student.model.generation_config.update(**published)
    expected, found = ([example.input_ids for example in answered(of)[0]] for of in (plain, penalised))
    assert all(map(torch.equal, expected, found))


def test_answers_depend_on_seed_step_row_and_turn_and_on_no_split(tmp_path):
    def texts(micro=4, step=0, **changes):
        return {e.id: e.input_ids.tolist() for e in answered(loop(tmp_path, **changes), micro, step)[0]}

    whole = texts()
    assert texts(1) == texts(2) == whole != texts(step=1)
    assert texts(student=tiny.model(seed=1), name="other") != whole
    rows = [tiny.row(name, None, ("Say hi.", "hi"), ("Say hi.", "hi")) for name in "xy"]
    of = loop(tmp_path, turns="independent")
    of.data = tiny.conversations(of.trainer.paths.student, tmp_path, "independent", rows)
    of.rounds.state.rows = torch.tensor([0, 1, 0, 1])
    one, two, again, _ = answered(of)[0]
    assert torch.equal(one.input_ids, again.input_ids) and not torch.equal(one.input_ids, two.input_ids)
    first, second = (one.input_ids[slice(*span)] for span in answer_spans(one.labels))
    assert not torch.equal(first, second)


def test_nothing_counts_behind_the_end_token_which_counts_once(tmp_path):
    for turns in ("chained", "independent"):
        of = loop(tmp_path, turns=turns, answers=ALL_OWN | {"max_tokens": 12})
        words = of.data.inputs.tokenizer(" dog bus cat")["input_ids"]
        of.answers.never = torch.tensor(
            [i for i in range(of.trainer.paths.vocabulary) if i not in (*words, of.answers.end)]
        )
        examples, figures = answered(of)
        lengths = []
        for given, example in zip([of.data[i] for i in of.rounds.left(0)[:4]], examples, strict=True):
            spans = answer_spans(example.labels)
            assert len(spans) == len(answer_spans(given.labels))
            for begin, stop in spans:
                learnt = example.labels[begin:stop].tolist()
                lengths.append(len(learnt))
                assert of.answers.end not in learnt[:-1]
                # a cut answer is closed for what comes behind it, without being learnt
                assert learnt[-1] == of.answers.end or int(example.input_ids[stop]) == of.answers.end
            assert torch.equal(*(next(prompts(of)) for of in (given, example)))
        assert figures["own/length"] == pytest.approx(sum(lengths) / len(lengths))
        assert 0 <= figures["own/cut"] < 1 and min(lengths) < 12


def test_an_example_that_would_not_fit_keeps_the_given_answers(tmp_path):
    of = loop(tmp_path, limit=40, answers=ALL_OWN | {"max_tokens": 12})
    examples, figures = answered(of)
    given = [of.data[i] for i in of.rounds.left(0)[:4]]
    kept = [e for e, g in zip(examples, given, strict=True) if torch.equal(e.labels, g.labels)]
    assert 0 < len(kept) < 4 and not any(e.own for e in kept) and figures["own/share"] == 1 - len(kept) / 4
    assert all(len(example.input_ids) <= 40 for example in examples)


def test_given_and_own_answers_are_counted_apart(tmp_path):
    terms = [CE, KL, {**KL, "name": "of_own", "answers": "own"}, {**KL, "name": "of_given", "answers": "given"}]
    of = loop(tmp_path, objective=terms, answers=ALL_OWN | {"own": 0.5})
    (batch,) = of.answers(group(of), 0)[0]
    assert batch.own.tolist() == [False, True, False, True]
    counts = of.trainer.objective.counts([batch])
    by_term = [int(counts[of.trainer.objective.counted(term)]) for term in of.trainer.objective.terms]
    own = int((batch.labels[batch.own] != IGNORE).sum())
    both = int((batch.labels != IGNORE).sum())
    assert by_term == [both - own, both, own, both - own]
    lines = []
    loop(tmp_path, lines=lines, objective=terms, answers=ALL_OWN | {"own": 0.5}).run()
    for line in (line for line in lines if "loss" in line):
        parts = own * line["loss/of_own"] + (both - own) * line["loss/of_given"]
        assert line["loss/kl"] == pytest.approx(parts / both, rel=1e-5) or line["step"] > 1


def test_vsd_on_own_answers_trains_the_vision_tower_alone(tmp_path):
    of = loop(tmp_path, objective=[VSD | {"answers": "own"}], train=["vision"])
    before = {name: p.clone() for name, p in of.trainer.paths.named_parameters()}
    of.run()
    moved = {name for name, p in of.trainer.paths.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(".vision_tower." in name for name in moved)
    gradients = of.trainer.paths.student.named_parameters()
    assert {name for name, p in gradients if p.requires_grad} >= {n.removeprefix("student.") for n in moved}


@pytest.mark.parametrize("micro", [1, 2])
def test_no_split_changes_the_step(tmp_path, micro):
    one, other = (
        loop(tmp_path, objective=[CE, KL, VSD], answers=ALL_OWN | {"own": 0.5}, **m)
        for m in ({}, {"micro_batch": micro})
    )
    one.run()
    other.run()
    for p, q in zip(one.trainer.paths.parameters(), other.trainer.paths.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)


def test_no_own_answers_are_bit_equal_to_none(tmp_path):
    one, other = (loop(tmp_path, objective=[CE, KL], answers=answers) for answers in (None, ALL_OWN | {"own": 0.0}))
    one.run()
    other.run()
    assert all(map(torch.equal, one.trainer.paths.parameters(), other.trainer.paths.parameters()))


def test_a_teacher_with_other_visual_tokens_reads_the_same_answers(tmp_path):
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2, vision={"patch_size": 8})
    paths = Paths(student, teacher, len(student.inputs.tokenizer))
    data = tiny.conversations(student, tmp_path).with_teacher(teacher.inputs)
    settings = {"name": "distill", "data": "rows", "train": ["language"], "lr": 1e-3, "batch": 4, "steps": 2}
    stage = Stage.model_validate(settings | {"objective": [KL], "answers": ALL_OWN})
    of = Loop(stage, paths, data, seed=3, precision="fp32", log=print)
    for example in answered(of)[0]:
        ours, theirs = (each.input_ids[~each.image].tolist() for each in (example, example.others[OF_TEACHER]))
        assert ours == theirs and example.own and example.others[OF_TEACHER].own
        labels = [each.labels[~each.image].tolist() for each in (example, example.others[OF_TEACHER])]
        assert labels[0] == labels[1]
    of.run()


def test_a_reader_that_is_told_the_right_answer_reads_the_students_own_one_behind_it(tmp_path):
    """OPSD: the prompt keeps the data's answer."""
    student, told = tiny.model(seed=1), {"model": "before", "prompt": "Think of {answer}. {question}"}
    known = BUILT_IN | {"told": PathSpec.model_validate(told)}
    paths = Paths(student, None, len(student.inputs.tokenizer), known=known)
    data = tiny.conversations(student, tmp_path).with_teacher(student.inputs, readers=("told",), prompt=told["prompt"])
    settings = {"name": "distill", "data": "rows", "train": ["language"], "lr": 1e-3, "batch": 4, "steps": 2}
    objective = [{"name": "told", "loss": "forward_kl", "to": "told", "answers": "own"}]
    stage = Stage.model_validate(settings | {"objective": objective, "answers": ALL_OWN})
    stage._known = known
    of = Loop(stage, paths, data, seed=3, precision="fp32", log=print)
    given = {data[i].id: data[i] for i in range(4)}
    for example in answered(of)[0]:
        (reading,) = example.others.values()
        text, row = student.inputs.tokenizer.decode(reading.input_ids), next(r for r in data.rows if r.id == example.id)
        assert all(f"Think of {right}. {question}" in text for question, right in row.exchanges)
        answers = [each.labels[each.labels != IGNORE].tolist() for each in (example, reading, given[example.id])]
        assert answers[0] == answers[1] != answers[2]
    of.run()
