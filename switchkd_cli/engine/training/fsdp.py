"""Training with torch's FSDP2: weights, gradients and AdamW's state are sharded over the processes, layer by layer."""

import warnings
from collections.abc import Mapping
from typing import Any

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
    """Torch shards the weights of a copy; the `whole` paths stay on the CPU.

    A layer of V or L is complete while it is computed, and the rest of the student during a forward pass. bf16 is the
    automatic mixed precision of `TorchReplica`, so that no number depends on how the training is sharded.
    """

    def __init__(self, whole: Paths, groups: Groups, processes: Processes, stage: Stage, precision: str) -> None:
        # the objective changes no output in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        copy = whole.twin().to(processes.device)
        mesh = init_device_mesh(processes.device.type, (processes.count,))
        for layers in (copy.student.seam.vision_layers(copy.student.core), copy.student.language.layers):
            for layer in layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(copy, mesh=mesh)
        super().__init__(whole, groups, processes, stage, precision, sharded=copy)

    @property
    def heads(self) -> Heads | None:
        """None: a head is complete only in the forward pass."""
        return None

    def set_moments(self, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        super().set_moments(moments)
        for parameter in moments:
            twin: Any = self.twins[parameter]
            for name, value in self.adamw.state[twin].items():
                if name != "step":
                    self.adamw.state[twin][name] = distribute_tensor(value, twin.device_mesh, twin.placements)

    def _gathered(self, value: Tensor) -> Tensor:
        return value.full_tensor() if isinstance(value, DTensor) else value
