"""matplotlib as a guest: loaded when a picture is wanted, and without files of its own in the user's home."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def load_matplotlib() -> None:
    """Loads what draws. Where matplotlib keeps no list of the fonts yet, it is made for this process alone."""
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ or any(_own_folder().glob("fontlist-*.json")):
        return
    with tempfile.TemporaryDirectory(prefix="costl-fonts-", ignore_cleanup_errors=True) as place:
        os.environ["MPLCONFIGDIR"] = place
        try:
            # When it is loaded it looks for its folders, and for the fonts, once and for all.
            import matplotlib.backends.backend_agg
            import matplotlib.figure
            import matplotlib.font_manager  # noqa: F401
        finally:
            del os.environ["MPLCONFIGDIR"]


def _own_folder() -> Path:
    """Where matplotlib keeps its list, by its own rules."""
    if sys.platform in ("win32", "darwin"):
        return Path.home() / ".matplotlib"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
