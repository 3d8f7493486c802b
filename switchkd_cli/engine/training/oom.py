"""Out of memory: the peak, what uses memory between steps, and which settings need less."""

import resource
from collections.abc import Sequence

import torch

from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.hub import one_line
from switchkd_cli.engine.training.trainer import Trainer
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.recipe.schema import RECOMPUTED

MIB = 2**20


def peak_memory_mib() -> float:
    """Return the peak memory of the accelerator, or of this process if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU torch has no exception of its own for it."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def out_of_memory(trainer: Trainer, group: Sequence[Batch], where: str, error: BaseException) -> UserError | None:
    """Return what used memory when an allocation failed, and which settings need less; None for any other error."""
    if not is_out_of_memory(error):
        return None
    examples, tokens = len(group[0].ids), max(batch.input_ids.shape[1] for batch in group)
    sizes = {what: sum(tensor.nbytes for tensor in tensors) for what, tensors in memory_in_use(trainer).items()}
    parts = ", ".join(f"{what} {size / MIB:,.0f} MiB" for what, size in sizes.items() if size)
    problems = (
        f"{where}: out of memory: {one_line(error)}",
        f"{where}: alive: {parts}; peak {peak_memory_mib():,.0f} MiB",
        f"{where}: remaining memory: activations of {examples} examples padded to {tokens:,} tokens",
    )
    return UserError(problems, hint=_smaller_settings(trainer, examples, tokens), code=MACHINE)


def memory_in_use(trainer: Trainer) -> dict[str, Sequence[torch.Tensor]]:
    """Return the tensors that stay allocated from step to step."""
    replica = trainer.replica
    weights = [replica.twins[p] for p in trainer.trained.values()]
    trained = {id(p) for p in weights}
    moments = [value for state in replica.adamw.state.values() for value in state.values()]
    models = [replica.paths, *replica.paths.frozen.values()]
    return {
        "trained weights": weights,
        "their gradients": [p.grad for p in weights if p.grad is not None],
        "AdamW's moments": [value for value in moments if torch.is_tensor(value)],
        "frozen weights and the teacher": [p for m in models for p in m.parameters() if id(p) not in trained],
    }


def _smaller_settings(trainer: Trainer, examples: int, tokens: int) -> str:
    """Return a smaller micro-batch and activation checkpointing; if one example is too much, what makes it smaller."""
    stage = trainer.stage
    name, ways = f"stages.{stage.name}", []
    if smaller := max((n for n in range(1, examples // 2 + 1) if stage.batch % n == 0), default=None):
        count = stage.batch // smaller
        ways = [f"{name}.micro_batch={smaller} needs about half, the same gradient from {count} micro-batches"]
    if set(stage.activation_checkpointing) != set(RECOMPUTED):
        ways.append(f"{name}.activation_checkpointing=true keeps only layers' inputs, for one more forward pass")
    if not smaller:
        cut = " ".join(f"data.{name}.max_length={tokens // 2}" for name in stage.trained_on)
        ways.append(f"{cut} cuts examples; fewer parts, or precision=bf16, need less")
    return "; ".join([*ways, "--dry-run --machine memory=GIB says what fits"])
