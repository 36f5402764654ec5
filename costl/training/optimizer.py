"""The optimizer, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from costl.config import Train


def make_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """AdamW. Biases, norms and other single rows do not decay: it would only shift the values that they are there to set."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    rows = [weight for weight in model.parameters() if weight.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": rows, "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: Train, *, step: int, progress: float) -> None:
    """Linear warm-up over steps times a cosine over `progress`, the fraction of training that is done."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * warmup * (0.5 + 0.5 * math.cos(math.pi * progress))
