"""The moving average of the weights (EMA), which is validated and saved."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, *, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * model, for every parameter. Buffers are constants here and stay as they are."""
    get_ema_multi_avg_fn(decay)(list(ema_model.parameters()), list(model.parameters()), 0)
