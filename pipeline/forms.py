"""The forms that tokens are stored in: which tokens of a frame, of how many layers, and with how many bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipeline.errors import UsageError

DTYPES = ("float16", "int8")
TOKENS = ("all", "cls")


@dataclass(frozen=True)
class Form:
    """`dtype` float16 as CLIP gives them, or int8 with scales (see `quantise`); `layers` how many of the last blocks;
    `tokens` all of a frame, or cls: the frame's token without its patches.

    Raises UsageError for a value that cannot be meant.
    """

    dtype: str = "float16"
    layers: int = 1
    tokens: str = "all"

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("tokens", TOKENS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}.")
        if not isinstance(self.layers, int) or isinstance(self.layers, bool) or self.layers < 1:
            raise UsageError(f"layers is {self.layers!r}, expected how many of CLIP's last blocks to keep, at least 1.")

    @property
    def patches(self) -> bool:
        """Whether patches are kept beside the frame's token."""
        return self.tokens == "all"

    def token_bytes(self, channels: int) -> int:
        """What one token of one layer takes, its scale included."""
        return channels + 4 if self.dtype == "int8" else 2 * channels


def form_in(values: Mapping[str, Any]) -> Form:
    """The form that a fingerprint or an index tells; what it does not speak of is as it was before there was a choice."""
    return Form(**{field.name: values[field.name] for field in fields(Form) if field.name in values})
