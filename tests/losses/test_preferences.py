"""Losses on pairs of a preferred and a rejected answer, and rows that have them."""

import math

import pytest
import torch

from switchkd_cli.engine.batch import IGNORE
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Fault, Rows
from switchkd_cli.engine.data.sources import playground
from switchkd_cli.engine.data.turns import form
from switchkd_cli.engine.losses.preferences import advantage, preference
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.loop import train
from switchkd_cli.engine.training.own_answers import with_answers
from switchkd_cli.recipe.schema import Stage
from tests.support import tiny

ROWS = torch.tensor([0, 0, 0, 0, 2, 2])  # the pairs of six positions
SIGNS = torch.tensor([1, 1, 1, -1, 1, -1])
PREFERENCE = {"loss": "preference", "to": "teacher", "on": "pair"}


def logits(seed):
    return torch.randn(6, 7, generator=torch.Generator().manual_seed(seed))


def test_a_preference_is_the_formula_in_float64():
    teacher, student, targets = logits(1), logits(2), torch.tensor([3, 0, 6, 1, 2, 5])
    found = preference(teacher, student, targets, ROWS, SIGNS, beta=0.5)
    ours, theirs = (of.double().log_softmax(-1)[range(6), targets] for of in (student, teacher))
    chosen = [ours[:3].sum() - theirs[:3].sum(), ours[4] - theirs[4]]
    rejected = [ours[3] - theirs[3], ours[5] - theirs[5]]
    expected = [-math.log(1 / (1 + math.exp(-0.5 * float(c - r)))) for c, r in zip(chosen, rejected, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_student_as_its_own_reference_and_a_pair_of_equal_answers_give_log_2():
    teacher, targets = logits(1), torch.tensor([3, 0, 6, 1, 2, 5])
    assert preference(teacher, teacher, targets, ROWS, SIGNS).tolist() == pytest.approx([math.log(2)] * 2)
    same = torch.stack([logits(2)[0]] * 4)
    equal = preference(teacher[[0] * 4], same, torch.tensor([3] * 4), torch.zeros(4), torch.tensor([1, 1, -1, -1]))
    assert equal.tolist() == pytest.approx([math.log(2)])


def test_an_advantage_is_the_formula_in_float64_and_nothing_between_equal_teachers():
    teacher, reference, student = logits(1), logits(2), logits(3).requires_grad_()
    t, r = (of.double().log_softmax(-1) for of in (teacher, reference))
    expected = -(student.double().softmax(-1) * (t - r)).sum(-1)
    torch.testing.assert_close(advantage(teacher, reference, student).double(), expected, rtol=1e-5, atol=1e-6)
    advantage(teacher, teacher.clone(), student).sum().backward()
    assert not student.grad.any()
    wider = [torch.cat([of, torch.full((6, 2), -torch.inf)], 1) for of in (teacher, reference, student)]
    torch.testing.assert_close(advantage(*wider), advantage(teacher, reference, student))


def messages(name="p", picture=None, **more):
    content = [("user", "<image>" * bool(picture) + "What is it?"), ("assistant", "a dog"), ("user", "How many?")]
    turns = [{"role": role, "content": text} for role, text in [*content, ("assistant", "three red apples")]]
    return {"id": name, "messages": turns, "rejected_response": "two", "images": [picture] * bool(picture), **more}


FORMS = {
    "ms_swift": messages(),
    "trl_preferences": {"prompt": "How many?", "chosen": "three red apples", "rejected": "two"},
    "trl_preference_messages": {
        "prompt": [{"role": "user", "content": "How many?"}],
        "chosen": [{"role": "assistant", "content": "three red apples"}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "two"}]}],
    },
    "rlhf_v": {"question": "How many?", "chosen": "three red apples", "rejected": "two"},
    "sharegpt_preferences": {
        "conversations": [{"from": "human", "value": "How many?"}],
        "chosen": {"from": "gpt", "value": "three red apples"},
        "rejected": {"from": "gpt", "value": "two"},
    },
    "alpaca_preferences": {"instruction": "How", "input": "many?", "chosen": "three red apples", "rejected": "two"},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_of_preferences_gives_the_pair(name):
    row = form(name).row(FORMS[name])
    question = "How\nmany?" if name == "alpaca_preferences" else "How many?"
    assert row.paired and row.exchanges[-2:] == ((question, "three red apples"), (question, "two"))
    assert row.unlearnt == ({0} if name == "ms_swift" else set())


@pytest.mark.parametrize("rejected", [["a", "b"], " ", "<image>", {"role": "assistant"}])
def test_a_rejected_answer_that_is_no_text_is_a_fault(rejected):
    with pytest.raises(Fault):
        form("ms_swift").row(messages(rejected_response=rejected))


def pairs(student, folder):
    picture = tiny.picture(folder, "p.png", 1)
    plain = messages("plain", picture)
    del plain["rejected_response"]
    rows = [messages("p", picture), plain, messages("q"), messages("r", picture, rejected_response="five apples")]
    return Conversations(Rows(rows, form("ms_swift").row, images=folder), student.inputs)


def test_each_answer_of_a_pair_is_behind_the_whole_question_and_sees_no_other(tmp_path):
    student = tiny.model(seed=1)
    data = pairs(student, tmp_path)
    batch = tiny.together(student, [data[i] for i in range(4)])
    words = data.inputs.tokenizer
    said = {
        on: [words.decode(of[of != IGNORE]) for of in batch.targets.where(batch.predicting(on), IGNORE)]
        for on in ("answer", "chosen", "rejected")
    }
    end = data.end
    assert [text.strip() for text in said["chosen"]] == [f"three red apples{end}", "", *[f"three red apples{end}"] * 2]
    assert [text.strip() for text in said["rejected"]] == [f"two{end}", "", f"two{end}", f"five apples{end}"]
    assert said["answer"][0] == said["chosen"][0] and "a dog" in said["answer"][1]
    # the rejected answer as the only one of a conversation has the same logits
    alone = messages("p", "p.png")
    alone["messages"][-1]["content"] = alone.pop("rejected_response")
    single = Conversations(Rows([alone], form("ms_swift").row, images=tmp_path), student.inputs)
    single = tiny.together(student, [single[0]])
    keep = single.predicting("answer") & (torch.arange(single.turn.shape[1]) >= single.turn.shape[1] - 6)
    paths = Paths(student, None, len(words))
    with torch.no_grad():
        both = paths(batch, {"student"}, batch.predicting("rejected"))["student"][: int(keep.sum())]
        torch.testing.assert_close(both, paths(single, {"student"}, keep)["student"], rtol=1e-4, atol=1e-5)


def test_own_answers_of_a_pair_are_no_preference(tmp_path):
    student = tiny.model(seed=1)
    data, words = pairs(student, tmp_path), torch.tensor([5, 6])
    own = with_answers(data[0], [words, words], student.inputs.tokenizer.eos_token_id, student.inputs)
    batch = tiny.together(student, [own, data[2]])
    assert batch.predicting("pair").any(1).tolist() == batch.predicting("rejected").any(1).tolist() == [False, True]
    assert batch.predicting("own answer").sum(1).tolist() == [4, 0]


def test_a_pair_is_compared_whole_or_not_at_all(tmp_path):
    data = pairs(tiny.model(seed=1), tmp_path)
    data.max_length = len(data[2].input_ids) - 3
    data._cache = {}
    with pytest.raises(Fault, match="a pair of answers is compared whole"):
        data.example(2)


@pytest.mark.parametrize("states", ["batched", "cached"])
def test_a_stage_learns_preferences_with_any_split_and_with_cached_references(tmp_path, states):
    def trained(**changes):
        student, lines = tiny.model(seed=1), []
        paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.tokenizer))
        settings = {"name": "p", "data": "rows", "train": ["language"], "lr": 1e-3, "batch": 4, "steps": 3}
        kl = {"loss": "forward_kl", "to": "teacher"}
        settings["objective"] = [PREFERENCE, *({**kl, "name": on, "on": on} for on in ("chosen", "rejected"))]
        stage = Stage.model_validate(settings | {"teacher_states": states} | changes)
        train(stage, paths, pairs(student, tmp_path), seed=0, precision="fp32", log=lines.append, states=tmp_path / "s")
        return paths, lines

    (whole, lines), (split, again) = trained(), trained(micro_batch=2)
    for p, q in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)
    steps = [line for line in lines if "step" in line]
    assert steps[0]["loss/preference"] != pytest.approx(math.log(2), rel=1e-6)
    assert steps[-1]["loss/preference"] < steps[0]["loss/preference"]
    if states == "cached":
        counts = [
            next((line["found"], line["computed"]) for line in of if line.get("event") == "teacher states")
            for of in (lines, again)
        ]
        assert counts == [(8, 4), (12, 0)]


def test_the_playground_makes_pairs_of_a_right_and_a_wrong_answer(tmp_path):
    rows = playground(tmp_path, kind="preferences", pictures=40, turns=4, seed=2)
    assert not rows.survey.faults and rows.survey.image_mask.all() and rows.survey.has_pairs
    pairs = [row for row in map(rows.__getitem__, range(40)) if row.paired]
    assert len(pairs) > 20
    for row in pairs:
        (question, right), (again, wrong) = row.exchanges
        assert question == again and {right, wrong} in ({"yes", "no"}, {"A", "B"})
    told = playground(tmp_path, kind="instructions", pictures=40, turns=4, seed=2)
    assert not told.survey.has_pairs
    assert all(pair.exchanges[0] in told[int(i)].exchanges for i, pair in enumerate(map(rows.__getitem__, range(40))))
