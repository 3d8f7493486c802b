"""Memory: its peak, what is alive in it, and what to change when it does not suffice."""

import resource
from collections.abc import Sequence

import torch

from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.recipe.schema import RECOMPUTED

MIB = 2**20


def memory_mib() -> float:
    """Peak memory of the accelerator, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def is_too_little(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU torch has no exception of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def too_little(trainer: Trainer, group: Sequence[Batch], where: str, error: BaseException) -> UserError:
    """What was alive when an allocation failed, and the settings that need less."""
    rows, tokens = len(group[0].ids), max(batch.input_ids.shape[1] for batch in group)
    parts = ", ".join(f"{what} {size / MIB:,.0f} MiB" for what, size in alive(trainer).items() if size)
    asked = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        [
            f"{where}: out of memory: {asked}",
            f"{where}: alive: {parts}; peak {memory_mib():,.0f} MiB",
            f"{where}: the rest is what a micro-batch keeps: {rows} rows, padded to {tokens:,} tokens",
        ],
        hint=_settings(trainer, rows, tokens),
        code=MACHINE,
    )


def alive(trainer: Trainer) -> dict[str, int]:
    """Bytes of what stays from step to step."""
    replica = trainer.replica
    weights = [replica.own(parameter) for parameter in trainer.trained.values()]
    ours = {id(p) for p in weights}
    moments = [value for kept in replica.adamw.state.values() for value in kept.values()]
    read = [replica.computed, *filter(None, [replica.computed.teacher])]
    rest = [p for module in read for p in module.parameters() if id(p) not in ours]
    return {
        "trained weights": _bytes(weights),
        "their gradients": _bytes([p.grad for p in weights if p.grad is not None]),
        "AdamW's moments": _bytes([value for value in moments if torch.is_tensor(value)]),
        "frozen weights and the teacher": _bytes(rest),
    }


def _settings(trainer: Trainer, rows: int, tokens: int) -> str:
    """The next smaller split, and layers that keep their inputs only; where one row is too much, what makes it smaller."""
    stage = trainer.stage
    name, first = f"stages.{stage.name}", []
    if smaller := max((n for n in range(1, rows // 2 + 1) if stage.batch % n == 0), default=None):
        count = stage.batch // smaller
        first = [
            f"{name}.micro_batch={smaller} needs about half, the same gradient from {count} micro-batches"
        ]
    if set(stage.activation_checkpointing) != set(RECOMPUTED):
        first.append(
            f"{name}.activation_checkpointing=true keeps only layers' inputs, for a forward pass more"
        )
    if smaller:
        return "; ".join([*first, "--dry-run --machine memory=GIB says what fits"])
    shorter = f"cut rows (data.{stage.data}.max_length={tokens // 2})"
    cut = f"{shorter}, train fewer parts, or set precision=bf16 (on a GPU)"
    return f"one row is too much: {'; or '.join([*first, cut])}"


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
