"""Memory measured exactly, where a device does not count it itself."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# The profiler reads this at its first start; with a lower level it prints two lines to stderr at every use.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def peak_tensor_bytes(work: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Give the most bytes of tensors that `work` held at once, beyond those that existed before.

    On a GPU the caching allocator counts. On a CPU the profiler's record of allocations is added up, which depends on
    the work alone and repeats exactly; the process's resident memory depends on the allocator and on the past. Tensors
    of before that `work` frees make room for others on a GPU; on a CPU they do not count.

    Args:
        work: run once.
        device: where it allocates.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    held = peak = 0
    profiler = record.profiler
    assert profiler is not None and profiler.kineto_results is not None
    events: list[Any] = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
