"""Mean squared error, image by image."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.vocabulary import at_least_float32


def mse_per_image(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean of (student - teacher)^2 over all axes of [P, ...] except the first, [P]; the teacher is detached."""
    difference = at_least_float32(student) - at_least_float32(teacher.detach())
    return difference.square().flatten(1).mean(-1)
