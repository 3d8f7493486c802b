"""A stage's optimiser, and the schedule of its learning rate."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from switchkd_cli import registry
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Stage


def make_optimizer(groups: list[dict[str, Any]], stage: Stage) -> Optimizer:
    """Return the stage's AdamW: torch's fused kernel, or bitsandbytes' with moments of 8 bits (adamw_8bit)."""
    # every group has a rate of its own; schedules read the stage's
    given = {name: getattr(stage, name) for name in ("lr", "weight_decay", "betas", "eps")}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if stage.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **settings)
    return AdamW(groups, **settings, fused=True)


def make_schedule(optimizer: Optimizer, stage: Stage, steps: int) -> LambdaLR:
    """Return the stage's schedule over `steps`. Raises UserError for parameters that don't fit one another."""
    given = {"num_warmup_steps": round(stage.warmup * steps), "num_training_steps": steps}
    taken = registry.signature("schedule", stage.schedule).positional
    try:
        make = registry.resolve("schedule", stage.schedule)
        schedule = make(optimizer, **{k: v for k, v in given.items() if k in taken}, **stage.schedule_parameters)
        factors = [schedule.lr_lambdas[0](step) for step in {0, *given.values(), steps // 2}]
        if not all(math.isfinite(factor) and factor >= 0 for factor in factors):
            raise ValueError(f"its learning rates would be multiples of {factors}")
    except (TypeError, ValueError, ArithmeticError) as error:
        problem = f"stages.{stage.name}.schedule_parameters: {stage.schedule}: {error}"
        raise UserError(problem, "docs/recipes.md lists the schedules and their parameters") from error
    return schedule


def check_schedules(stages: Iterable[Stage]) -> None:
    """Raise UserError for a schedule that can't be made, before the first stage is trained."""
    for stage in stages:
        make_schedule(AdamW([torch.zeros(1)], lr=stage.lr), stage, stage.steps or 1000)
