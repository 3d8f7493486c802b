"""Training with torch's FSDP2: weights, gradients and AdamW's state are sharded over the processes, layer by layer."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from switchkd_cli.engine.lm_head import Heads
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.optimizer import Groups, TorchReplica
from switchkd_cli.engine.training.processes import Processes
from switchkd_cli.recipe.schema import Stage


class FsdpReplica(TorchReplica):
    """A copy of `paths` whose weights torch shards; `paths` itself stays complete, on the CPU: `collect` brings it up to date.

    A layer of V or L is complete while it is computed, and the rest of the student during a forward pass. bf16 is the
    automatic mixed precision of `TorchReplica`, so that no number depends on how the training is sharded.
    """

    def __init__(self, paths: Paths, groups: Groups, processes: Processes, stage: Stage, precision: str) -> None:
        # the objective changes no output in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        copy = paths.twin().to(processes.device)
        mesh = init_device_mesh(processes.device.type, (processes.count,))
        for layers in (copy.student.seam.vision_layers(copy.student.core), copy.student.language.layers):
            for layer in layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(copy, mesh=mesh)
        twins = dict(zip(paths.parameters(), copy.parameters(), strict=True))
        own = [{**group, "params": [twins[p] for p in group["params"]]} for group in groups]
        super().__init__(copy, own, processes, stage, precision, find_unused=None)
        self.twins, self.trained = twins, [p for group in groups for p in group["params"]]

    @property
    def heads(self) -> Heads | None:
        """None: a head is complete only in the forward pass."""
        return None

    def outputs_to_probe(self, *_: Any) -> None:
        """None: a backward pass of another kind would leave its gradients with the step's."""

    @torch.no_grad()
    def collect(self) -> None:
        """Bring the weights in `paths` up to date. Every process must call this."""
        for parameter in self.trained:
            parameter.copy_(_whole(self.twins[parameter]))

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return AdamW's complete state of a parameter; empty before the first step. Every process must call this."""
        return {key: _whole(value) for key, value in super().moments(self.twins[parameter]).items()}

    def set_moments(self, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Restore AdamW's state: each process takes its shard."""
        for parameter, state in moments.items():
            twin: Any = self.twins[parameter]

            def shard(value: Tensor, twin: Any = twin) -> Tensor:
                return distribute_tensor(value.to(self.device), twin.device_mesh, twin.placements)

            self.adamw.state[twin] = {k: v.to(self.device) if k == "step" else shard(v) for k, v in state.items()}


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
