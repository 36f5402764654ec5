"""Installs the tree under one name: `pipeline/` as `costl.pipeline`, `configs/` as `costl.configs`. The rest is in setup.cfg."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["costl*"])
    + [f"costl.{name}" for name in find_packages(include=["pipeline*", "configs"])],
    package_dir={"costl.pipeline": "pipeline", "costl.configs": "configs"},
)
