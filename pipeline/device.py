"""The device that computes: a name from the command line -> a `torch.device`."""

from __future__ import annotations

import torch

from costl.pipeline.errors import UsageError


def pick_device(name: str) -> torch.device:
    """The device `name`; `auto` is a GPU if there is one. Raises UsageError for a device that this machine lacks."""
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        tensor = torch.empty(0, device=chosen)
        tensor.cpu()  # the device `meta` has no data
        return tensor.device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}). Try cpu or auto."
        ) from error
