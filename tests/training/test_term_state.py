"""Term state: weights that vary from step to step, states of losses; both change once a step and are in checkpoints."""

import math
from types import SimpleNamespace

import pytest
import torch

from switchkd_cli import registry
from switchkd_cli.engine.losses.ops.state import State, ema, updated_by
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.checkpointing import read_state, write_state
from switchkd_cli.engine.training.loop import Loop
from switchkd_cli.engine.training.term_state import TermStates
from switchkd_cli.engine.training.validation import Validator
from switchkd_cli.recipe.schema import Learned, Ramp, Stage, Term
from tests.support import reference_losses as reference
from tests.support import tiny
from tests.support.registered_losses import losses

CE = {"name": "ce", "loss": "cross_entropy", "weight": {"learned": 2.0, "lr": 0.1}}
KD = {"name": "kd", "loss": "taid_adaptive", "to": "teacher", "weight": {"from": 0, "to": 1, "over": 0.5}}
VALUES = [2.0, 1.5, 1.7, 0.2, 0.2, 4.0, 1.0, 0.9, 0.85, 0.3, 0.5, 0.4] + [0.4 - 0.01 * n for n in range(8)]


def states(*terms):
    stage = SimpleNamespace(objective=[Term.model_validate(term) for term in terms], lr=0.01)
    return TermStates(stage, torch.device("cpu"))


def stepped(some, values, *, name, first=0, steps=20):
    for number, value in enumerate(values, first):
        some.update({name: value}, {name}, [{}], number / steps, 1.0)
    return some


def test_a_ramp_has_its_ends_exactly_and_is_linear_between_them():
    ramp = Term.model_validate(KD | {"weight": {"from": 0.1, "to": 0.3, "over": 0.3}}).weight
    assert (ramp.at(0.0), ramp.at(0.3), ramp.at(0.9)) == (0.1, 0.3, 0.3)
    assert ramp.at(0.15) == pytest.approx(0.2)
    falling = Ramp.model_validate({"from": 1, "to": 0})
    assert [falling.at(share) for share in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]


def test_a_learned_weight_takes_adamws_steps_on_its_closed_gradient():
    """The same as autograd on exp(-s) loss + s, and it settles where weight times loss is 1."""
    some, s = states(CE), torch.tensor(-math.log(2.0), dtype=torch.float64, requires_grad=True)
    adamw = torch.optim.AdamW([s], lr=0.1, weight_decay=0.0)
    for value in VALUES:
        adamw.zero_grad()
        ((-s).exp() * value + s).backward()
        adamw.step()
        stepped(some, [value], name="ce")
        assert some.weights(0.0)["ce"] == pytest.approx(math.exp(-s.item()), rel=1e-12)
    assert some.total({"ce": 0.3}, some.weights(0.0)) == pytest.approx(math.exp(-s.item()) * 0.3 + s.item())
    stepped(some, [0.25] * 300, name="ce")
    assert some.weights(0.0)["ce"] == pytest.approx(4.0, rel=0.02)


def test_a_step_in_which_a_term_had_nothing_to_compare_teaches_its_weight_and_state_nothing():
    some = states(CE, KD | {"weight": 1.0})
    before = some.state_dict()
    some.update({"ce": 0.0, "kd": 0.0}, set(), [{}], 0.0, 1.0)
    assert some.state_dict()["losses"] == before["losses"] == {"kd": {}}
    assert some.weights(0.0) == {"ce": pytest.approx(2.0)}


def test_adaptive_taid_follows_its_formula_and_never_goes_back():
    some, seen = states(KD), []
    for number, value in enumerate(VALUES):
        t = max(some.of_losses["kd"].get("t", 0.4), 0.4 + 0.6 * number / len(VALUES))
        seen.append(t)
        stepped(some, [value], name="kd", first=number)
    assert seen == pytest.approx(reference.taid_steps(VALUES), rel=1e-12)
    assert seen == sorted(seen)
    large = states(KD | {"parameters": {"start": 0.2, "end": 0.9, "alpha": 0.5, "beta": 0.5}})
    steep = []
    for number, value in enumerate(VALUES):
        stepped(large, [value], name="kd", first=number)
        steep.append(large.of_losses["kd"]["t"])
    own = reference.taid_steps(VALUES, start=0.2, end=0.9, alpha=0.5, beta=0.5)
    assert steep[1:-1] == pytest.approx(own[2:], rel=1e-12)
    assert steep == sorted(steep) and steep[-1] == 0.9  # not beyond


def test_adaptive_taid_is_taid_at_its_t():
    teacher, student = reference.language_logits(4, 9, seed=1)
    at = losses.taid_adaptive(teacher, student, 0.1, State(t=0.7), temperature=2.0)
    torch.testing.assert_close(at, losses.taid(teacher, student, 0.5, temperature=2.0))
    lower = losses.taid_adaptive(teacher, student, 0.5, State(t=0.1))  # the line is its lower bound
    torch.testing.assert_close(lower, losses.taid(teacher, student, 0.5))


def test_a_loss_of_0_is_no_error():
    some = stepped(states(KD), [0.0, 0.5, 0.4], name="kd")
    assert 0.4 <= some.of_losses["kd"]["t"] <= 0.5


def test_an_average_begins_with_its_first_value():
    assert ema(None, 3.0, 0.9) == 3.0
    assert ema(3.0, 5.0, 0.9) == pytest.approx(3.2)


def test_twenty_resumes_are_bit_equal(tmp_path):
    terms = CE, KD
    whole = states(*terms)
    parted = states(*terms)
    for number, value in enumerate(VALUES):
        for some in (whole, parted):
            some.update({"ce": value, "kd": value / 3}, {"ce", "kd"}, [{}], number / 20, 0.5)
        (tmp_path / str(number)).mkdir()
        write_state(parted.state_dict(), tmp_path / str(number))
        parted = states(*terms)
        parted.load_state_dict(read_state(tmp_path / str(number)))
        assert parted.weights(0.1) == whole.weights(0.1)
        assert parted.of_losses == whole.of_losses


def codebook_step(state, sums, loss, progress, *, decay):
    mean = sums["hidden"] / sums["count"]
    return {"centre": ema(state.get("centre"), mean, decay), "steps": state.get("steps", 0) + 1}


@updated_by(codebook_step)
def to_centre(student_hidden, state, *, decay: float = 0.5):
    """A loss with a moving average of what it saw: (h - centre)², and what the next centre is made of."""
    state.add("hidden", student_hidden.sum(0))
    state.add("count", torch.tensor(len(student_hidden)))
    centre = state.get("centre", torch.zeros(student_hidden.shape[-1]))
    return (student_hidden.float() - centre).square().mean(-1)


TO_CENTRE = {"name": "centre", "loss": "to_centre"}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(registry.LOSSES, "to_centre", f"{__name__}:to_centre")


def loop(folder, *terms, micro_batch=2, **changes):
    settings = {"name": "distill", "data": "rows", "train": ["vision", "projector", "language"], "lr": 1e-3}
    settings |= {"batch": 4, "micro_batch": micro_batch, "steps": 4, "workers": 0, "objective": terms}
    student = tiny.model(seed=1)
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))
    lines = []
    data = tiny.conversations(student, folder)
    return Loop(
        Stage.model_validate(settings | changes), paths, data, seed=3, precision="fp32", log=lines.append
    ), lines


def figures(lines):
    clock = {"seconds", "tokens_per_second", "data_wait", "memory_mib"}
    return [{name: of for name, of in line.items() if name not in clock} for line in lines if "grad_norm" in line]


def test_a_stage_resumes_with_its_weights_and_states_bit_by_bit(tmp_path, registered):
    (tmp_path / "state").mkdir()
    whole, lines = loop(tmp_path, CE, KD, TO_CENTRE)
    whole.run()
    first, _ = loop(tmp_path, CE, KD, TO_CENTRE)
    first.steps = 2
    first.run()
    write_state(first.state_dict(), tmp_path / "state")
    second, rest = loop(tmp_path, CE, KD, TO_CENTRE)
    second.load_state_dict(read_state(tmp_path / "state"))
    second.run()
    assert figures(rest) == figures(lines)[2:]
    ours, theirs = (some.trainer.states.of_losses["centre"] for some in (whole, second))
    assert torch.equal(ours["centre"], theirs["centre"]) and theirs["steps"] == 4


def test_the_weights_in_force_are_logged_and_minimised_and_the_first_is_the_recipes(tmp_path):
    some, lines = loop(tmp_path, CE, KD)
    some.run()
    steps = figures(lines)
    assert [line["weight/kd"] for line in steps] == [0, 0.5, 1, 1]
    assert steps[0]["weight/ce"] == pytest.approx(2.0) and steps[1]["weight/ce"] != pytest.approx(2.0)
    for line in steps:
        total = line["weight/ce"] * line["loss/ce"] - math.log(line["weight/ce"]) + line["weight/kd"] * line["loss/kd"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)
    plain, others = loop(tmp_path, CE | {"weight": 2.0}, steps=1)
    plain.run()
    assert not any(name.startswith("weight/") for line in figures(others) for name in line)


def test_a_state_takes_in_the_whole_step_in_any_micro_batches(tmp_path, registered):
    found = []
    for size in (4, 1):
        some, _ = loop(tmp_path, {"loss": "cross_entropy"}, TO_CENTRE, micro_batch=size, steps=2)
        some.run()
        found.append(some.trainer.states.of_losses["centre"])
    torch.testing.assert_close(found[0]["centre"], found[1]["centre"], rtol=1e-4, atol=1e-6)
    assert found[0]["steps"] == found[1]["steps"] == 2


def test_a_step_that_is_not_finite_leaves_weights_and_states_as_they_were(tmp_path):
    some, _ = loop(tmp_path, CE, KD, not_finite="skip")
    before = some.trainer.states.state_dict()
    embeddings = some.trainer.paths.teacher.model.get_input_embeddings()
    broken = torch.nn.Embedding.from_pretrained(torch.full_like(embeddings.weight, math.nan))
    some.trainer.paths.teacher.model.set_input_embeddings(broken)
    some.steps = 1
    some.run()
    after = some.trainer.states.state_dict()
    assert some.skipped == 1 and after["losses"] == {"kd": {}}
    assert after["weights"]["ce"].keys() == before["weights"]["ce"].keys() == {"s"}


def test_a_validation_updates_no_state(tmp_path, registered):
    validation = {"data": "others", "every_steps": 1}
    plain, checked = (loop(tmp_path, KD, TO_CENTRE, steps=2, **more)[0] for more in ({}, {"validation": validation}))
    held = tiny.conversations(checked.trainer.paths.student, tmp_path)
    checked.validation = Validator(checked.stage.validation, held, checked.trainer)
    for some in (plain, checked):
        some.run()
    ours, theirs = plain.trainer.states, checked.trainer.states
    assert theirs.of_losses["kd"] == ours.of_losses["kd"]
    assert torch.equal(theirs.of_losses["centre"]["centre"], ours.of_losses["centre"]["centre"])


@pytest.mark.parametrize(
    "weight, words",
    [({"from": 1, "to": 1}, "give the number alone"), ({"learned": 0}, "greater than 0"), ({"form": 1}, "from")],
)
def test_a_weight_that_can_not_be_is_refused(weight, words):
    with pytest.raises(ValueError, match=words):
        Term.model_validate(KD | {"weight": weight})


def test_a_weight_is_written_as_it_was_read():
    for weight in ({"from": 0.0, "to": 1.0, "over": 0.3}, {"learned": 1.0, "lr": None}, 0.5):
        term = Term.model_validate(KD | {"weight": weight})
        assert term.model_dump(mode="json")["weight"] == weight
        assert Term.model_validate_json(term.model_dump_json()) == term
    assert isinstance(Term.model_validate(CE).weight, Learned)


def test_prototypes_follow_the_teachers_states():
    """Step by step against the explicit formula; a prototype that is never the nearest stays."""
    draw = torch.Generator().manual_seed(1)
    state = State(prototypes=torch.randn(3, 5, generator=draw, dtype=torch.float64))
    state["prototypes"][2] = -state["prototypes"][:2].sum(0)  # far from the states
    for _ in range(3):
        near = state["prototypes"][torch.randint(2, (6,), generator=draw)]
        teacher, student = (near + 0.1 * torch.randn(6, 5, generator=draw, dtype=torch.float64) for _ in range(2))
        state.sums = {}
        parts = [losses.codebook(teacher[of], student[of], state, size=3) for of in (slice(2), slice(2, 6))]
        expected, means = reference.codebook(teacher, student, state["prototypes"])
        torch.testing.assert_close(torch.cat(parts), expected)
        before = state["prototypes"]
        parameters = {"size": 3, "decay": 0.9, "temperature": 0.1}
        state = State(losses.codebook.update(state, state.sums, 0.0, 0.0, **parameters))
        moved = [c if mean is None else 0.9 * c + 0.1 * mean for c, mean in zip(before, means, strict=True)]
        torch.testing.assert_close(state["prototypes"], torch.stack(moved))
        assert torch.equal(state["prototypes"][2], before[2])


def test_a_codebook_is_drawn_alike_and_gives_the_teacher_no_gradient():
    teacher, student = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    values = [losses.codebook(teacher, student, State()) for _ in range(2)]
    assert (
        torch.equal(*values) and losses.codebook(teacher.bfloat16(), student.bfloat16(), State()).dtype == torch.float32
    )
    values[0].sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert losses.codebook(teacher, teacher, State()).abs().max() < 1e-6
    assert losses.codebook(teacher[:0], student[:0], State()).shape == (0,)
