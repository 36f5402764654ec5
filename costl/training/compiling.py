"""Compiling the part of a model for which it may pay."""

from __future__ import annotations

import torch
from torch import nn

from costl.model.baselines.cls import TextLayer
from costl.model.temporal import Attention, TemporalLayer
from costl.pipeline.errors import UsageError


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Compiles the layers over time where they are, so that weights keep their names; the first steps take a while longer.

    They are small operations in a row, and of one code; compiling all of the model took minutes and brought less. Raises
    UsageError where nothing can be compiled.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"train.compile is true, but nothing can be compiled for {device.type} here ({reason}). "
            "Install a C++ compiler such as g++, or leave train.compile out."
        ) from error
    for layer in model.modules():
        if isinstance(layer, TemporalLayer | TextLayer):
            layer.compile(dynamic=True)
        if isinstance(layer, Attention):  # it would compile masks for one length (PyTorch 2.14)
            layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[method-assign]
