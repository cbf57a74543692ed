"""Training with several processes: errors are reported once and end all of them; synchronised batch norms."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import Interrupted, UserError

T = TypeVar("T")

#: key of the launcher's store that holds why a process failed
FAILURE_KEY = "vitrail/failed"


# ---- errors -----------------------------------------------------------------------------------------------------


def is_first_to_report(text: str) -> bool:
    """True if no other process of this run has reported the same text; also without other processes or a store.

    torchrun keeps a store that outlives its processes. Under another launcher every process reports its own errors.
    """
    store = _store()
    if store is None:
        return True
    try:
        return store.add(f"vitrail/reported/{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}", 1) == 1
    except RuntimeError:  # the store has ended
        return True


def _store() -> Any:
    """torchrun's store; None without one."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        port = int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=timedelta(seconds=20))
    except (KeyError, ValueError, RuntimeError):
        return None
    # a group that torchrun starts again begins with a clean slate
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


@contextmanager
def sharing_failures() -> Iterator[None]:
    """End all processes with the error of the one that fails, instead of a lost connection's traceback.

    Raises:
        UserError: another process failed; the message is that of its error.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:
        store = _store()
        if store is None:
            raise
        own = isinstance(error, UserError)
        if not own and isinstance(error, RuntimeError) and store.check([FAILURE_KEY]):
            raise UserError(store.get(FAILURE_KEY).decode()) from error
        if not store.check([FAILURE_KEY]):
            kind = f"Another process of this run failed ({type(error).__name__}): see what it says."
            store.set(FAILURE_KEY, str(error) if own else kind)
        raise


def call_in_all_processes(accelerator: Any, act: Callable[[], T]) -> T:
    """Call a function in every process; if it raises `UserError` in one, all raise that error.

    Args:
        accelerator: Accelerate's object.
        act: called in each process; must not communicate with other processes.
    """
    from accelerate.utils import gather_object

    if accelerator.num_processes == 1:
        return act()
    result, mistake = None, None
    try:
        result = act()
    except UserError as error:
        mistake = str(error)
    mistakes = [text for text in gather_object([mistake]) if text is not None]
    if mistakes:
        raise UserError(mistakes[0])
    return cast(T, result)


# ---- batch norms ------------------------------------------------------------------------------------------------


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm that trains with the mean and variance over the batches of all processes, on any device.

    torch's own is for GPUs only. Each process weighs as much as it has values. With one process, and in evaluation, it
    is a plain batch norm.

    Args:
        norm: the batch norm it takes the place of; parameters and buffers are shared.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm):
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats, self.training = norm.affine, norm.track_running_stats, norm.training
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from two on, of which the second is the channels'."""

    def forward(self, input: Tensor) -> Tensor:
        """Of shape (N, C, ...), in the input's precision."""
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        others = [dim for dim in range(input.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(input.ndim)]
        with torch.autocast(input.device.type, enabled=False):
            x = input.float()
            count = x.new_full((1,), x.numel() // x.shape[1])
            sums = cast(Tensor, _Sum.apply(torch.cat((x.sum(others), count))))
            total = sums[-1].detach()
            mean = sums[:-1] / total
            centred = x - mean.view(shape)
            var = cast(Tensor, _Sum.apply(centred.square().sum(others))) / total
            self._track(mean.detach(), var.detach(), total)
            y = centred * (var + self.eps).rsqrt().view(shape)
            if self.weight is not None:
                y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, total: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = var * (total / (total - 1).clamp(min=1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class SyncedBatchNormAct(SyncedBatchNorm):
    """A `SyncedBatchNorm` before timm's dropout and activation.

    Args:
        norm: timm's `BatchNormAct2d`.
    """

    def __init__(self, norm: Any):
        super().__init__(norm)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, input: Tensor) -> Tensor:
        """Of shape (N, C, H, W)."""
        return self.act(self.drop(super().forward(input)))


def with_synced_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace a network's batch norms by synchronised ones, in place: torch's on GPUs, else ours."""
    from timm.layers import BatchNormAct2d, convert_sync_batchnorm

    if device.type == "cuda":
        return convert_sync_batchnorm(model)
    if isinstance(model, BatchNormAct2d):
        return SyncedBatchNormAct(model)
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return SyncedBatchNorm(model)
    for name, child in model.named_children():
        setattr(model, name, with_synced_norms(child, device))
    return model
