"""The plan's operations against those that torch counts in a real step, forward and backward."""

import pytest
import tiny
from measured import clip_batch, clip_pair, only, pair, rows_of, ways
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.shape import shape
from switchkd_cli.engine.cost.step import Terms

ERROR = 1e-6  # relative: the same operations are counted, one by one
OVERCOUNTED = 31 * 2 * 2 * 4 * 9 * 32
"""torch counts the gradient of a depth-wise convolution's weights as if it were dense: 32 times, of 2 x 4 tokens."""


def both(kind, folder):
    if kind == "clip":
        return clip_pair(), clip_batch()
    paths = pair(16)
    return paths, tiny.batch(paths.student, folder, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chained", "independent", "clip"])
def test_a_step_takes_the_operations_that_are_planned(kind, tmp_path):
    paths, batch = both(kind, tmp_path)
    keep = batch.predicting("answer")
    for wanted, train in ways():
        only(paths, train)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            logits = paths(batch, wanted, keep)
            sum(z.float().square().sum() for path, z in logits.items() if path != "teacher").backward()
        planned = flops.step(
            shape(paths.student.model.config),
            shape(paths.teacher.model.config),
            rows_of(batch),
            Terms(wanted, train, ()),
        )
        counted = counter.get_total_flops()
        if kind == "clip" and "projector" in train:
            counted -= OVERCOUNTED
        assert sum(planned.values()) == pytest.approx(counted, rel=ERROR), (wanted, train)
