"""Several processes that train one model, as `torchrun` starts them: each has its share of every batch.

Gradients are summed in one collective call an update. Whether to stop or to save goes through a call of its own, with
the losses, so that no process goes on alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lodarepro.errors import BadInput, Stopped


@dataclass(frozen=True)
class Processes:
    """The processes that work on one run.

    Attributes:
        rank: of this process; 0 writes the results.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """What of a batch is this process's."""
        return items[self.rank :: self.size]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace fp32 tensors by their sums over all processes, in one call."""
        if self.size == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        with _together():
            dist.all_reduce(flat)
        for t, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(summed.view_as(t))

    def agree(self, losses: Tensor, asked: Tensor) -> tuple[bool, ...]:
        """Sum losses over all processes; tell what any of them asked for.

        Args:
            losses: fp32, each process's share; replaced by the sums.
            asked: bool.
        """
        count = asked.float()
        self.sum([losses, count])
        return tuple(bool(n) for n in count.tolist())

    def gather(self, item: Any) -> list[Any]:
        """What each process has, in the order of ranks, for all of them."""
        if self.size == 1:
            return [item]
        found: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(found, item)
        return found

    def told(self, item: Any = None) -> Any:
        """What the first process says."""
        if self.size == 1:
            return item
        said = [item]
        with _together():
            dist.broadcast_object_list(said, src=0)
        return said[0]


ALONE = Processes()


@contextmanager
def _together() -> Iterator[None]:
    """What all processes do at once; the others' end is one line."""
    try:
        yield
    except RuntimeError:  # of whichever engine it is
        raise Stopped("another process of this run has ended; the same command continues", signal.SIGTERM) from None


def local_rank() -> int | None:
    """Which of the processes on this machine this is, if `torchrun` started it with others.

    Raises:
        BadInput: the environment says that there are others, but not which this is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if "LOCAL_RANK" not in os.environ:
        raise BadInput("WORLD_SIZE is set and LOCAL_RANK is not; start with torchrun, or unset WORLD_SIZE")
    return int(os.environ["LOCAL_RANK"])


@contextmanager
def joined(backend: str) -> Iterator[Processes]:
    """Join the processes that `torchrun` started; alone without it.

    Args:
        backend: `gloo` for CPUs, `nccl` for GPUs.

    Raises:
        BadInput: there are fewer GPUs than processes here.
    """
    if (rank := local_rank()) is None:
        yield ALONE
        return
    if backend == "nccl":
        if rank >= (found := torch.cuda.device_count()):
            raise BadInput(f"torchrun: torch sees {found} CUDA devices here; give --nproc-per-node {found} or less")
        torch.cuda.set_device(rank)
    dist.init_process_group(backend)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
