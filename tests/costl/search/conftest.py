"""A trained run of the small world, for the tests of searches with a run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run(world, tmp_path_factory) -> Path:
    from costl.train import train

    folder = tmp_path_factory.mktemp("trained") / "small"
    train(world.cache, overrides=["train.epochs=1"], out=folder, device="cpu")
    return folder
