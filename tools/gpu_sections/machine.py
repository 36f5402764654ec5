"""The GPU, its driver, and the versions of the packages."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from costl.pipeline.processes import cpu_cores
from gpu_sections.common import Setup

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "h5py", "av", "decord", "torchcodec", "numkong")


def machine(setup: Setup) -> None:
    """Ends the process if there is no GPU."""
    if not setup.tiny and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU of CUDA. Install torch with CUDA and a driver, or try --tiny on a CPU.")
    setup.table("", "")
    setup.row("CPU", f"{cpu_cores()} cores, {platform.machine()}, {_memory_gb():.0f} GB, {platform.system()}")
    if setup.on_gpu:
        gpu = torch.cuda.get_device_properties(setup.device)
        setup.row("GPU", f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, compute capability {gpu.major}.{gpu.minor}")
        setup.row("driver", _driver())
        setup.row("CUDA, cuDNN, NCCL", f"{torch.version.cuda}, {torch.backends.cudnn.version()}, {_nccl()}")
    setup.row("Python", platform.python_version())
    setup.row("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES))


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _nccl() -> str:
    return ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
