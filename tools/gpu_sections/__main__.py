"""Runs one section in this process: python -m gpu_sections MODULE:FUNCTION RESULT FOLDER full|tiny

RESULT is the file for its lines. FOLDER is shared by all sections.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import torch

from gpu_sections.common import Setup


def main(name: str, result: str, folder: str, size: str) -> None:
    """Runs the function `name` of a module of this package."""
    module, _, function = name.partition(":")
    device = torch.device("cpu" if size == "tiny" else "cuda:0")
    with Path(result).open("w", encoding="utf-8", buffering=1) as file:
        section = getattr(import_module(f"gpu_sections.{module}"), function)
        section(Setup(device, Path(folder), file, tiny=size == "tiny"))


if __name__ == "__main__":
    main(*sys.argv[1:])
