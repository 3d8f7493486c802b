"""The mean square of a difference, picture by picture."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import in_float


def mean_squares(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean of (student - teacher)^2 over all but the first axis of [P, ...], [P]; none goes to the teacher."""
    return (in_float(student) - in_float(teacher.detach())).square().flatten(1).mean(-1)
