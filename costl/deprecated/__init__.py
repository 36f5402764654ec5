"""Old names of modules, objects and fields, for one version: they work and warn with the new name.

`costl/__init__.py` puts this folder on the path of the package, so that a file in it is imported as `costl.NAME`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def moved_object(module: str, name: str, new_names: Mapping[str, str]) -> Any:
    """The object that was called `module`.`name`, found by its new name "module:name" in `new_names`, with a warning.

    Raises AttributeError for a name that is not in `new_names`.
    """
    if name not in new_names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new_module, new_name = new_names[name].split(":")
    # The third level is the import, above this function and the old module's __getattr__.
    warnings.warn(f"{module}.{name} is now {new_module}.{new_name}.", DeprecationWarning, stacklevel=3)
    return getattr(import_module(new_module), new_name)


def renamed_field(old: str, new: str) -> property:
    """A property with the old name of the field `new`, which warns when it is read."""

    def read(self: Any) -> Any:
        warnings.warn(f"{type(self).__name__}.{old} is now {new}.", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(read)
