"""A non-finite loss or gradient: named, recorded, never trained on, never saved."""

import json
import math

import pytest
import torch

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.checkpointing import CheckpointWriter
from switchkd_cli.engine.training.loop import MAX_SKIPPED, Loop
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Saving, Stage
from switchkd_cli.runs import checkpoints
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import tiny

CE = {"name": "ce", "loss": "cross_entropy"}
ALIGN = {"name": "align", "loss": "dbild", "to": "teacher"}


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "recipe" / "row" / "seed0")
    run.path.mkdir(parents=True)
    return run


def loop(folder, *, word=None, saving=None, **changes):
    """A stage with batches of all four examples; the teacher's embedding of `word` is NaN."""
    settings = {"name": "distill", "data": "rows", "train": ["vision", "projector", "language"], "lr": 1e-3}
    settings |= {"batch": 4, "micro_batch": 2, "steps": 12, "objective": [CE, ALIGN]}
    student, teacher = tiny.model(seed=1), tiny.model(24, seed=2)
    if word is not None:
        (token,) = student.inputs.processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        broken = torch.nn.Embedding.from_pretrained(teacher.model.get_input_embeddings().weight.clone())
        broken.weight[token] = math.nan
        teacher.model.set_input_embeddings(broken)
    lines = []
    some = Loop(
        Stage.model_validate(settings | changes),
        Paths(student, teacher, len(student.inputs.processor.tokenizer)),
        tiny.conversations(student, folder.root),
        seed=3,
        precision="fp32",
        log=lines.append,
        writer=CheckpointWriter(folder, "distill", saving or Saving(every_steps=1)),
    )
    return some, lines


def weights(some):
    return {name: parameter.detach().clone() for name, parameter in some.trainer.trained.items()}


def test_the_term_the_step_and_the_row_are_named_and_nothing_is_changed(folder):
    some, lines = loop(folder, word=" bus")  # in row d only
    before = weights(some)
    with pytest.raises(UserError) as stopped:
        some.run()
    assert stopped.value.problems == ("stage distill, step 1: loss/align is nan; examples d",)
    assert stopped.value.code == 1
    assert "stages.distill.lr=" in stopped.value.hint and "stages.distill.not_finite=skip" in stopped.value.hint
    assert all(torch.equal(before[name], now) for name, now in weights(some).items())
    (line,) = map(json.loads, folder.not_finite.read_text().splitlines())
    assert (line["stage"], line["step"], line["figures"]) == ("distill", 1, {"loss/align": "nan"})
    assert line["rows"] == ["d"] and sorted(row for rows in line["micro_batches"] for row in rows) == [
        "a",
        "b",
        "c",
        "d",
    ]
    assert not folder.checkpoints.exists()
    assert [line["step"] for line in lines if "step" in line] == [1]


def test_skipped_steps_change_no_weight_and_ten_in_a_row_end_the_run(folder):
    some, lines = loop(folder, word=" bus", not_finite="skip")
    before = weights(some)
    with pytest.raises(UserError, match=f"{MAX_SKIPPED} such steps in a row"):
        some.run()
    assert all(torch.equal(before[name], now) for name, now in weights(some).items())
    events = [line for line in lines if line.get("event") == "skipped step"]
    assert [event["step"] for event in events] == list(range(1, MAX_SKIPPED))
    assert events[0]["text"] == "loss/align is nan; examples d"
    assert len(folder.not_finite.read_text().splitlines()) == MAX_SKIPPED


def test_a_step_without_the_row_is_taken(folder):
    some, lines = loop(folder, word=" bus", not_finite="skip", batch=1, micro_batch=1, steps=8)
    some.run()
    skipped = {line["step"] for line in lines if line.get("event") == "skipped step"}
    assert len(skipped) == 2  # two epochs
    taken = [line for line in lines if "loss" in line and line["step"] not in skipped]
    assert len(taken) == 6 and all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in taken)
    assert all(now.isfinite().all() for now in weights(some).values())


def test_a_gradient_behind_a_finite_loss_is_found(folder):
    some, _ = loop(folder)
    before = weights(some)
    name, parameter = next(iter(some.trainer.trained.items()))
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="step 1: grad_norm is (nan|inf); examples"):
        some.run()
    assert torch.equal(before[name], parameter)


def test_weights_that_are_lost_are_not_saved(folder):
    some, _ = loop(folder, steps=3)
    some.run()
    assert [one.step for one in checkpoints.saved(folder, "distill")] == [3, 2]
    with torch.no_grad():
        next(iter(some.trainer.trained.values())).fill_(math.nan)
    some.step = 4
    with pytest.raises(UserError, match="distill-4: not written, the weights are lost: not finite: weights/") as lost:
        some.save()
    assert "the newest intact checkpoint is checkpoints/distill-3" in lost.value.hint
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == ["distill-2", "distill-3"]


def test_skipped_steps_are_counted_across_an_interruption(folder):
    some, _ = loop(folder, word=" bus", not_finite="skip", steps=4)
    some.run()
    assert some.state_dict()["skipped"] == 4
    more, _ = loop(folder, word=" bus", not_finite="skip")
    more.load_state_dict({**some.state_dict(), "schedule": more.trainer.schedule.state_dict()})
    with pytest.raises(UserError, match="step 10: .*in a row"):
        more.run()
