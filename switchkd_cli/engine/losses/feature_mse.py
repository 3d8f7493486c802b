"""Feature matching on the vision tower (FitNets, 1412.6550, between two towers)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.mse import mean_squares


def feature_mse(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the mean square of V_S(x) - V_T(x), features [P, F, W] in front of the projectors, per picture, [P].

    Between towers that start equal it starts at 0 and holds the student's where it is.
    """
    return mean_squares(teacher_features, student_features)
