"""The number format of training: float32, bfloat16 or float16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

_FIRST_WITH_BFLOAT16 = 8  # NVIDIA's compute capability; older GPUs emulate bfloat16, slowly


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype for `train.precision`; "auto" is half precision on CUDA and float32 elsewhere.

    Weights, losses and the optimizer step are always float32.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type != "cuda":
        return torch.float32
    # bfloat16 has the range of float32, so that no loss scaling is needed.
    capable = torch.cuda.get_device_capability(device)[0] >= _FIRST_WITH_BFLOAT16
    return torch.bfloat16 if capable else torch.float16


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """The context for the forward of the model."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """The context for a part of the forward that runs in float32, also inside `autocast`."""
    capable = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if capable else nullcontext()


def make_scaler(device: torch.device, precision: torch.dtype) -> torch.amp.GradScaler:
    """The loss scaler that keeps small float16 gradients from becoming zero; disabled for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == torch.float16)


def may_overflow(scaler: torch.amp.GradScaler) -> bool:
    """Whether the loss scale may have caused a non-finite gradient: then the step is skipped and the scale reduced.

    A gradient that is not finite even at a scale below one comes from the model.
    """
    return scaler.is_enabled() and scaler.get_scale() >= 1
