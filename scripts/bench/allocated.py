"""Measure the peak memory of a piece of work, in bytes."""

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak bytes of tensors while `work` runs, minus those that existed before.

    Counted is what torch's own allocator hands out, to the byte, and so the same on every run: inputs, weights and an
    optimiser's state that are there before are not in it; gradients, temporary copies and results are. On a GPU these are
    the caching allocator's allocated bytes (not the reserved ones, which fragments make more); on a CPU every allocation and
    release that torch.profiler records, added up in the order of time. Not counted on either: what libraries take beside
    torch's allocator (workspaces of BLAS, the C++ library's buffers while sorting, a decoded picture), Python's objects,
    and the memory of the process itself. `work` runs once, and is not timed: recording slows it down.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return peak_bytes_on_cpu(work)


def peak_bytes_on_cpu(work: Callable[[], object]) -> int:
    """Return the same for tensors on a CPU, even if there is a GPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events = watched.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate((change for _, change in changes), initial=0))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all tensors, each storage once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
