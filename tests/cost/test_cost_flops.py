"""The plan's operations compared with those that torch counts in a real step, forward and backward."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.data_sample import STEPS, DataSample, _counted
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.training.loop import Loop
from switchkd_cli.recipe.schema import RECOMPUTED, Stage
from tests.support import tiny
from tests.support.measured import clip_batch, clip_pair, computation, micro_batch, only, pair, ways

ERROR = 1e-6  # relative: the same operations are counted, one by one
OVERCOUNTED = 31 * 2 * 2 * 4 * 9 * 32
"""torch counts the gradient of a depth-wise convolution's weights as if it were dense: 32 times, of 2 x 4 tokens."""


def both(kind, folder):
    if kind == "clip":
        return clip_pair(), clip_batch()
    paths = pair(16)
    return paths, tiny.batch(paths.student, folder, kind)


def counted(paths, batch, wanted, train):
    """Operations of a forward and a backward pass."""
    only(paths, train)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = paths(batch, wanted, batch.predicting("answer"))
        sum(z.float().square().sum() for path, z in logits.items() if path != "teacher").backward()
    return counter.get_total_flops()


def planned(paths, batch, wanted, train, *recomputed):
    return flops.step(micro_batch(batch), computation(paths, wanted, train, *recomputed))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chained", "independent", "clip"])
def test_a_step_takes_the_operations_that_are_planned(kind, tmp_path):
    paths, batch = both(kind, tmp_path)
    for wanted, train in ways():
        over = OVERCOUNTED if kind == "clip" and "projector" in train else 0
        measured = counted(paths, batch, wanted, train) - over
        assert planned(paths, batch, wanted, train) == pytest.approx(measured, rel=ERROR), (wanted, train)


@pytest.mark.parametrize("what", [*RECOMPUTED, "all"])
@pytest.mark.parametrize("kind", ["chained", "clip"])
def test_recomputed_layers_take_the_operations_that_are_planned(kind, what, tmp_path):
    paths, batch = both(kind, tmp_path)
    wanted, train = frozenset({"student", "teacher", "switch"}), frozenset({"vision", "language"})
    again = frozenset(RECOMPUTED if what == "all" else {what})
    paths.recompute(again)
    measured = counted(paths, batch, wanted, train)
    assert planned(paths, batch, wanted, train, *again) == pytest.approx(measured, rel=ERROR)
    assert measured > planned(paths, batch, wanted, train)


@pytest.mark.parametrize("kind", ["chained", "clip"])
def test_what_a_mixer_reads_takes_the_operations_that_are_planned(kind, tmp_path):
    paths, batch = both(kind, tmp_path)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        paths(batch, {"student", "teacher"}, batch.predicting("answer"))
    assert planned(paths, batch, {"student", "teacher"}, ()) == pytest.approx(counter.get_total_flops(), rel=ERROR)


@pytest.mark.parametrize("turns", ["chained", "independent"])
def test_sampling_own_answers_takes_the_operations_that_are_planned(turns, tmp_path):
    paths, most = pair(16), 24
    data = tiny.conversations(paths.student, tmp_path, turns)
    settings = {"name": "s", "data": "rows", "train": ["language"], "lr": 1e-3, "batch": 4, "steps": 1}
    settings |= {"objective": [{"loss": "reverse_kl", "to": "teacher"}], "answers": {"own": 1.0, "max_tokens": most}}
    loop = Loop(Stage.model_validate(settings), paths, data, seed=0, precision="fp32", log=print)
    loop.answers.end = 1  # a token that no answer has, so that all take `most` steps
    loop.answers.never = torch.tensor([*loop.answers.never, 1])
    batch = tiny.together(paths.student, [data[i] for i in range(4)])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        assert loop.answers([batch], 0)[1]["own/cut"] == 1
    rows = tuple(_counted(data[i], len(data[i].images)) for i in range(4))
    asked = DataSample(4, rows, turns == "independent", "").own_answers(
        4, 1.0, ModelShape(paths.student).projector.tokens
    )
    planned = sum(count * flops.generation(ModelShape(paths.student), of, most) for of, count in asked.items()) / STEPS
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.1)
