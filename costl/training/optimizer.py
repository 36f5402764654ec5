"""The optimizer, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import replace

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


_EPOCHS = 60
_FEWEST_STEPS = 600  # fewer do not train the attention to patches, however few the sentences are


def fit_schedule(settings: Train, *, queries: int) -> Train:
    """The settings with the number of epochs for so many training queries. Settings with epochs stay as they are.

    Few queries are few batches an epoch. Training then takes more epochs, validates at most 60 times, and warms up for at
    most a fifth of all steps.
    """
    if settings.epochs is not None:
        return settings
    batches = math.ceil(queries / settings.batch_size)
    steps = settings.steps or max(_FEWEST_STEPS, _EPOCHS * batches)
    epochs = math.ceil(steps / batches)
    validate_every = max(settings.validate_every, math.ceil(epochs / _EPOCHS))
    return replace(
        settings,
        epochs=epochs,
        steps=None,
        validate_every=validate_every,
        patience=settings.patience * validate_every,
        warmup_steps=min(settings.warmup_steps, steps // 5),
    )
