"""Loads matplotlib only when a picture is drawn, and without leaving files in the user's home folder."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def load_matplotlib() -> None:
    """Imports matplotlib. If the user has no font list yet, it is built for this process only."""
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ or any(_user_folder().glob("fontlist-*.json")):
        return
    with tempfile.TemporaryDirectory(prefix="costl-fonts-", ignore_cleanup_errors=True) as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            # matplotlib chooses its folders and lists the fonts once, when it is imported.
            import matplotlib.backends.backend_agg
            import matplotlib.font_manager  # noqa: F401
        finally:
            del os.environ["MPLCONFIGDIR"]


def _user_folder() -> Path:
    """The folder of matplotlib's font list, by matplotlib's own rules."""
    if sys.platform in ("win32", "darwin"):
        return Path.home() / ".matplotlib"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
