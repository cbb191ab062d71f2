"""Training as several processes that torchrun starts: who this process is, what its rows are, what all agree on.

Without torchrun there is one process, and everything here does nothing. Losses and requests to stop go over the
processor (gloo), gradients over the device (NCCL on CUDA).
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from jamgym.errors import ConfigError
from jamgym.worker_run import launched_workers

#: While process 0 encodes songs or validates, the others wait. torchrun ends them all if one fails.
_PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Workers:
    """This process among those that train together.

    Attributes:
        device: Where this process computes.
        rank: Its number; 0 is the one that writes.
        count: How many there are.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    def pieces(self, rows: int, accumulate: int) -> list[slice]:
        """Return this process's rows of a batch of `rows`, cut into `accumulate` micro-batches of one size.

        Raises:
            ConfigError: The rows cannot be shared out evenly.
        """
        size, rest = divmod(rows, self.count * accumulate)
        if rest or size == 0:
            raise ConfigError(
                f"batch is {rows}, which {self.count} process(es) with accumulate = {accumulate} cannot share evenly; "
                f"give a multiple of {self.count * accumulate}."
            )
        first = self.rank * accumulate * size
        return [slice(first + i * size, first + (i + 1) * size) for i in range(accumulate)]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return `model` with gradients that are averaged over all processes, or itself if there is one.

        All processes start from the weights of process 0.
        """
        if self.count == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Newer versions of torch have another name for it, which older ones do not know.
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
            return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)

    def accumulating(self, model: nn.Module, more: bool) -> AbstractContextManager[object]:
        """Return a context for forward and backward; with `more` to come, gradients are not exchanged yet."""
        return model.no_sync() if more and isinstance(model, DistributedDataParallel) else nullcontext()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of `values` over all processes; each waits for all."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.sum([0.0])


@contextmanager
def join_workers(device: str) -> Iterator[Workers]:
    """Join the processes that torchrun started and leave together with them.

    Args:
        device: "auto", "cpu" or "cuda"; with CUDA each process of a machine gets a device of its own.

    Raises:
        ConfigError: There is no such device.
    """
    rank, count = launched_workers()
    place = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")) if count > 1 else 0)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if count == 1:
        yield Workers(place)
        return
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        workers = Workers(place, rank, count)
        yield workers
        # torchrun may end the others as soon as one leaves, and process 0 may still be writing.
        workers.wait()
    finally:
        # A wrapped model is part of a cycle. One that outlives its group may abort the process at its end.
        gc.collect()
        distributed.destroy_process_group()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device for setting `name` ("auto", "cpu" or "cuda") and this machine's process `local_rank`.

    Raises:
        ConfigError: CUDA was asked for and is not there, or has too few devices.
    """
    available = torch.cuda.is_available()
    if name == "cpu" or name == "auto" and not available:
        return torch.device("cpu")
    if not available:
        raise ConfigError(
            "device is 'cuda', but torch finds no CUDA device here. Use device: auto or cpu, or install a build of "
            "torch and a driver that fit each other (torch.cuda.is_available() must be True)."
        )
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"Process {local_rank} of this machine has no CUDA device of its own; there are "
            f"{torch.cuda.device_count()}. Give torchrun --nproc-per-node {torch.cuda.device_count()}, or device: cpu."
        )
    return torch.device("cuda", local_rank)
