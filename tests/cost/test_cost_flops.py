"""The plan's operations compared with those that torch counts in a real step, forward and backward."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.workload import Computation
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.recipe.schema import RECOMPUTED
from tests.support import tiny
from tests.support.measured import clip_batch, clip_pair, micro_batch, only, pair, ways

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


def planned(paths, batch, computed):
    shapes = ModelShape(paths.student), ModelShape(paths.teacher)
    return flops.step(*shapes, micro_batch(batch), computed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chained", "independent", "clip"])
def test_a_step_takes_the_operations_that_are_planned(kind, tmp_path):
    paths, batch = both(kind, tmp_path)
    for wanted, train in ways():
        over = OVERCOUNTED if kind == "clip" and "projector" in train else 0
        measured = counted(paths, batch, wanted, train) - over
        assert planned(paths, batch, Computation(wanted, train)) == pytest.approx(measured, rel=ERROR), (wanted, train)


@pytest.mark.parametrize("what", [*RECOMPUTED, "all"])
@pytest.mark.parametrize("kind", ["chained", "clip"])
def test_recomputed_layers_take_the_operations_that_are_planned(kind, what, tmp_path):
    paths, batch = both(kind, tmp_path)
    wanted, train = frozenset({"student", "teacher", "switch"}), frozenset({"vision", "language"})
    again = frozenset(RECOMPUTED if what == "all" else {what})
    paths.recompute(again)
    measured = counted(paths, batch, wanted, train)
    assert planned(paths, batch, Computation(wanted, train, again)) == pytest.approx(measured, rel=ERROR)
    assert measured > planned(paths, batch, Computation(wanted, train))


@pytest.mark.parametrize("kind", ["chained", "clip"])
def test_what_a_mixer_reads_takes_the_operations_that_are_planned(kind, tmp_path):
    paths, batch = both(kind, tmp_path)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        paths(batch, {"student", "teacher"}, batch.predicting("answer"))
    found = flops.forward(ModelShape(paths.student), ModelShape(paths.teacher), micro_batch(batch))
    assert found == pytest.approx(counter.get_total_flops(), rel=ERROR)
