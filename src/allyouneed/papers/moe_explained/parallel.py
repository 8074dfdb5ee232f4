"""Expert parallelism: each process holds some of the experts, and tokens travel to them and back."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from allyouneed.nn import Experts


class _AllToAll(torch.autograd.Function):
    """Sends segments of rows to all processes and gets theirs; gradients travel the same ways back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchanged(rows, sent, received, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _exchanged(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _exchanged(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> Tensor:
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows.contiguous(), list(received), list(sent), group=group)
    return arrived


class ExpertParallel(nn.Module):
    """Experts of which each process of a group holds its own, in order of the processes.

    Takes the place of `Experts` in a mixture. Every process calls it at the same time, with tokens of its own, possibly
    none. A process's experts get the gradient of all processes' tokens, summed; it must not be averaged over them as
    that of replicated weights is.

    Args:
        local: the experts that this process holds; as many on each.
        group: the processes; all where None.

    Attributes:
        number: of experts on all processes.

    Raises:
        RuntimeError: torch.distributed was not initialised.
    """

    def __init__(self, local: Experts, group: Any = None):
        super().__init__()
        if not dist.is_initialized():
            raise RuntimeError("expert parallelism needs processes: call torch.distributed.init_process_group first")
        self.local = local
        self.group = group
        self.processes = dist.get_world_size(group)
        self.number = local.number * self.processes

    def forward(self, rows: Float[Tensor, "rows width"], counts: Sequence[int]) -> Float[Tensor, "rows width"]:
        """Send rows to their experts' processes, compute what came from all, and send it back.

        Args:
            rows: sorted by expert, those of the first process first.
            counts: rows of each expert.
        """
        mine = torch.tensor(counts, dtype=torch.int64, device=rows.device)
        theirs = torch.empty_like(mine)
        dist.all_to_all_single(theirs, mine, group=self.group)
        # One row for each process that sent, one column for each expert here.
        arriving = theirs.reshape(self.processes, self.local.number)
        sent = mine.reshape(self.processes, -1).sum(1).tolist()
        received = arriving.sum(1).tolist()
        arrived: Any = _AllToAll.apply(rows, sent, received, self.group)
        # Sorted by sender, then expert; experts want theirs together.
        experts = torch.arange(self.local.number, device=rows.device).repeat(self.processes)
        order = experts.repeat_interleave(arriving.flatten()).argsort(stable=True)
        answers = self.local(arrived[order], arriving.sum(0).tolist())
        returned: Any = _AllToAll.apply(answers[order.argsort()], received, sent, self.group)
        return returned


def local_experts(whole: Experts, group: Any = None) -> Experts:
    """Give the part of a model's experts that this process holds, with the same weights.

    Args:
        whole: all of them; emptied of the others.
        group: the processes; all where None.

    Raises:
        ValueError: experts that cannot be shared out evenly.
    """
    processes, rank = dist.get_world_size(group), dist.get_rank(group)
    share, rest = divmod(whole.number, processes)
    if rest or not share:
        raise ValueError(f"{whole.number} experts cannot be shared out evenly among {processes} processes")
    for name, maps in whole.named_children():
        if isinstance(maps, nn.ModuleList):
            setattr(whole, name, maps[rank * share : (rank + 1) * share])
    whole.number = share
    return whole
