"""What the terms of a stage carry from step to step: weights that vary, and the states of losses."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from switchkd_cli import registry
from switchkd_cli.engine.losses.ops.state import State
from switchkd_cli.recipe.schema import Learned, Ramp, Stage


class TermStates:
    """The weights in force and the states of a stage's losses; each changes once per optimiser step, by the whole step.

    A learned weight is exp(-s): AdamW moves s by the gradient of exp(-s) · loss + s, which is 1 - exp(-s) · loss.
    """

    def __init__(self, stage: Stage, device: torch.device) -> None:
        self.terms, self.device = stage.objective, device
        self.of_losses = {term.name: State() for term in self.terms if "state" in term.signature.positional}
        learned = {term.name: term.weight for term in self.terms if isinstance(term.weight, Learned)}
        self.learned = {name: torch.tensor(-math.log(of.learned), dtype=torch.float64) for name, of in learned.items()}
        self.rates = [of.lr or stage.lr for of in learned.values()]
        groups = [{"params": [s]} for s in self.learned.values()]
        self.adamw = torch.optim.AdamW(groups, weight_decay=0.0) if groups else None

    def weights(self, progress: float) -> dict[str, float]:
        """Return the weights that vary, as they are after a share of the stage's steps."""
        ramps = {term.name: term.weight.at(progress) for term in self.terms if isinstance(term.weight, Ramp)}
        return ramps | {name: math.exp(-s.item()) for name, s in self.learned.items()}

    def total(self, values: Mapping[str, float], weights: Mapping[str, float]) -> float:
        """Return what is minimised, from the values of terms; those that are missing are left out."""
        terms = [term for term in self.terms if term.name in values]
        weighted = sum(weights.get(term.name, float(term.weight)) * values[term.name] for term in terms)
        return weighted + sum(s.item() for name, s in self.learned.items() if name in values)

    def adding(self) -> dict[str, State]:
        """Return the states for the losses of a step, to which these may add."""
        states = {name: State(state) for name, state in self.of_losses.items()}
        for state in states.values():
            state.sums = {}
        return states

    def update(
        self,
        losses: Mapping[str, float],
        compared: Collection[str],
        sums: Sequence[Mapping[str, Mapping[str, Tensor]]],
        progress: float,
        factor: float,
    ) -> None:
        """Take in a step: each term's loss over all of it, those that had something to compare, and the processes' sums.

        `factor` is that of the learning rate in its schedule.
        """
        for name, s in self.learned.items():
            s.grad = 1 - (-s).exp() * losses[name] if name in compared else None
        if self.adamw is not None:
            for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            self.adamw.step()
        for term in (term for term in self.terms if term.name in self.of_losses and term.name in compared):
            loss, state = registry.resolve("loss", term.loss), self.of_losses[term.name]
            added: dict[str, Tensor] = {}
            for name, value in (pair for of_process in sums for pair in of_process.get(term.name, {}).items()):
                added[name] = added.get(name, 0) + value.to(self.device)
            defaults = {name: of.default for name, of in term.signature.keywords.items()}
            parameters = defaults | getattr(loss, "keywords", {}) | term.parameters
            update = getattr(loss, "func", loss).update
            state |= update(state, added, losses[term.name], progress, **parameters)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        moments = self.adamw.state if self.adamw is not None else {}
        weights = {name: {"s": s, **moments.get(s, {})} for name, s in self.learned.items()}
        return {"losses": {name: dict(state) for name, state in self.of_losses.items()}, "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken."""
        losses = tree_map_only(Tensor, lambda of: of.to(self.device), state["losses"])
        self.of_losses = {name: State(of) for name, of in losses.items()}
        for name, saved in state["weights"].items():
            self.learned[name].copy_(saved["s"])
            if self.adamw is not None and len(saved) > 1:
                self.adamw.state[self.learned[name]] = {key: of for key, of in saved.items() if key != "s"}
