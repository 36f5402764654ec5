"""Compiles the layers over time with torch.compile (`train.compile`)."""

from __future__ import annotations

import torch
from torch import nn

from costl.model.baselines.cls import TextLayer
from costl.model.temporal import Attention, TemporalLayer
from costl.pipeline.errors import UsageError


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Compiles the layers over time in place, so that weights keep their names. The first steps take longer.

    These layers are many small operations and share their code; compiling the whole model took minutes and gained less.
    Raises UsageError when torch.compile does not work on this machine.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"train.compile is true, but torch.compile does not work for {device.type} on this machine ({reason}). "
            "Install a C++ compiler such as g++, or leave out train.compile."
        ) from error
    for layer in model.modules():
        if isinstance(layer, TemporalLayer | TextLayer):
            layer.compile(dynamic=True)
        if isinstance(layer, Attention):  # torch.compile specialises its masks to one length (PyTorch 2.14)
            layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[method-assign]
