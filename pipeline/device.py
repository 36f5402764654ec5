"""The device that computes: a name from the command line -> a `torch.device`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from costl.pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"auto|(cpu|cuda|mps|xpu)(:[0-9]{1,3})?")


def check_device(name: str) -> None:
    """Raises UsageError for a text that cannot be the name of a device, without loading torch."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise UsageError(f"device {name!r} cannot be used here, expected cpu, cuda, cuda:1 and so on, mps, or auto.")


def pick_device(name: str) -> torch.device:
    """The device `name`; `auto` is a GPU of CUDA if there is one. Raises UsageError for a device that this machine lacks."""
    check_device(name)
    import torch

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if chosen.startswith("mps") and not torch.backends.mps.is_available():  # torch's own message is a list of backends
        raise UsageError(f"device {name!r} cannot be used here (torch finds no Apple GPU). Try cpu or auto.")
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}). Try cpu or auto."
        ) from error


def default_precision(device_type: str) -> str:
    """The precision of CLIP's image tower on a type of device unless another one is named."""
    return "fp16" if device_type == "cuda" else "fp32"
