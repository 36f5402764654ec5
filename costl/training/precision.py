"""The arithmetic of training: which numbers the model computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from costl.pipeline.errors import UsageError

_FIRST_WITH_BFLOAT16 = 8  # NVIDIA's compute capability; older ones imitate it, slowly


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`train.precision` -> what the model computes in; "auto" is half precision on CUDA, and float32 elsewhere.

    Weights, losses and the optimizer's step are float32 whatever it is.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type != "cuda":
        return torch.float32
    # bfloat16 has the range of float32, so that no loss scaling is needed.
    capable = torch.cuda.get_device_capability(device)[0] >= _FIRST_WITH_BFLOAT16
    return torch.bfloat16 if capable else torch.float16


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Where the model's forward runs."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Where a part of the forward runs in float32, whatever the rest of it runs in."""
    capable = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if capable else nullcontext()


def make_scaler(device: torch.device, precision: torch.dtype) -> torch.amp.GradScaler:
    """Keeps small gradients of float16 from vanishing; for other precisions it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == torch.float16)


def may_overflow(scaler: torch.amp.GradScaler) -> bool:
    """Whether an endless gradient may be the scale's fault: then the step is left out, and the scale falls.

    One that is endless even at a scale below one is the model's own.
    """
    return scaler.is_enabled() and scaler.get_scale() >= 1


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UsageError for a device that this machine does not have."""
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}). Try cpu or auto."
        ) from error
