"""Mean squared error of the vision towers' features (FitNets, 1412.6550, between two towers)."""

from torch import Tensor

from switchkd_cli.engine.losses.ops.mse import mse_per_image


def feature_mse(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the mean square of V_S(x) - V_T(x), features [P, F, W] in front of the projectors, per image, [P].

    Between towers that start equal it starts at 0 and keeps the student's tower near where it started.
    """
    return mse_per_image(teacher_features, student_features)
