"""Counts, without a GPU, the operations that make the host wait for one: a fake GPU, and a mode that sees every operation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda")
aten = torch.ops.aten
# Operations whose result, or the shape of it, is only known when the device has computed it.
WAITING = (
    *(aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive),
)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for a device, by name; `host` are tensors that stay on the host.

    Copies between devices need two of them to be counted: a CPU and a fake GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.host: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._waits(func, args, kwargs):
            self.count[func.overloadpacket.__name__] += 1
            if isinstance(args[0], FakeTensor) and func is aten._local_scalar_dense.default:
                return 1  # a fake tensor has no values
        return func(*args, **kwargs)

    def _waits(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
        operation = func.overloadpacket
        if operation in INDEXING:
            return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if func is aten.repeat_interleave.Tensor:
            return kwargs.get("output_size") is None
        if operation in (aten._to_copy, aten.copy_):
            other = args[1].device if operation is aten.copy_ else kwargs.get("device")
            waiting = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            return waiting and other is not None and torch.device(other).type != args[0].device.type
        return operation in WAITING and not any(args[0] is tensor for tensor in self.host)


def move_to_fake_gpu(model: nn.Module) -> None:
    """Replaces the weights and buffers of a model by those of a fake GPU; call it inside of a FakeTensorMode."""
    for part in model.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(fake_gpu_tensor(weight)))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, fake_gpu_tensor(buffer))


def fake_gpu_tensor(tensor: Tensor) -> Tensor:
    """A tensor of this shape and dtype on a fake GPU. It has no values."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
