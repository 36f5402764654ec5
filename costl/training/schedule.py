"""The learning rate of each step: linear warm-up, then a cosine."""

from __future__ import annotations

import math

from costl.config import Config
from costl.training.state import (
    TrainingState,
)


def set_learning_rate(state: TrainingState, config: Config, *, progress: float) -> None:
    """Linear warm-up over steps times a cosine over `progress`, the fraction of training that is done."""
    warmup = min(1.0, (state.step + 1) / max(1, config.train.warmup_steps))
    for group in state.optimizer.param_groups:
        group["lr"] = config.train.learning_rate * warmup * (0.5 + 0.5 * math.cos(math.pi * progress))
