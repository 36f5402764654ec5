"""Old names of modules, for one version: `costl.checkpoint` is found here and warns with the new name.

`costl/__init__.py` puts this folder on the path of the package, so that a file in it is imported as `costl.NAME`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def from_new_place(module: str, name: str, moved: Mapping[str, str]) -> Any:
    """The object that `module` called `name` before, from its new module in `moved`, with a DeprecationWarning.

    Raises AttributeError for a name that is not in `moved`.
    """
    if name not in moved:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new = moved[name]
    # The third level is the import, above this function and the old module's __getattr__.
    warnings.warn(f"{module}.{name} is now {new}.{name}.", DeprecationWarning, stacklevel=3)
    return getattr(import_module(new), name)
