"""Fixtures for many tests: shape checks, and a very small sample world with its cache."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import jaxtyping
import numpy as np
import pytest
import quick_pictures
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

# The imports make no garbage worth the search for it, which takes a fifth of their time.
gc.disable()
# Every process of the tests reads CoSTL's bytecode instead of compiling it, also where Python is told to store none.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Set before torch is imported: for such small models a second thread is slower. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The threads of the few tests that start more sleep until there is work. By default they spin, on cores that others need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ[quick_pictures.LEVEL] = quick_pictures.BLANK  # in the processes of the tests
# Set before the modules are imported: the shapes in their signatures are then checked while the tests run.
SHAPED = (
    "costl.model",
    "costl.data.batch",
    "costl.data.sampler",
    "costl.data.targets",
    "costl.training.objective",
    "costl.predict.postprocess",
    "costl.predict.attention_maps",
    "costl.predict.sliding_window",
    "costl.training.shared_batch",
)
SHAPED_STAGE_ONE = ("costl.pipeline.encode.clip", "costl.pipeline.run.batch_packer", "costl.pipeline.encode.preprocess")
SHAPED_STAGE_ONE += ("costl.pipeline.encode.image_tower", "costl.pipeline.encode.text", "costl.pipeline.encode.tokenizer")
install_import_hook((*SHAPED, *SHAPED_STAGE_ONE), "beartype.beartype")
# These repeat trainings whose shapes other tests check. A check takes a quarter of so small a training.
UNCHECKED = ("browser/", "crash/", "costl/bench/", "costl/benchmarks/", "costl/commands/", "costl/experiments/", "costl/report/")
UNCHECKED += tuple(f"costl/training/test_{name}.py" for name in ("distributed", "interrupted", "repeatable", "state"))
UNCHECKED += ("costl/test_train.py", "costl/test_evaluate.py", "costl/model/test_earlier_checkpoints.py")
UNCHECKED += ("test_docs.py", "test_readme.py")


# At the end of a run, a long test keeps one core busy while the others have nothing left to do.
FIRST = ("test_lint.py", "crash/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with the longest tests come first."""
    items.sort(key=lambda item: not item.path.relative_to(Path(__file__).parent).as_posix().startswith(FIRST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Shapes are checked, and pictures laid out, in every test and in its fixtures, unless its file is listed above."""
    path = item.path.relative_to(Path(__file__).parent).as_posix()
    is_unchecked = path.startswith(UNCHECKED)
    jaxtyping.config.update("jaxtyping_disable", is_unchecked)
    is_blank = is_unchecked and not path.startswith("costl/report/")
    os.environ[quick_pictures.LEVEL] = quick_pictures.BLANK if is_blank else quick_pictures.LAID_OUT


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """The garbage collector starts, at a tenth of its usual pace, and leaves alone what the imports have made."""
    gc.freeze()
    gc.set_threshold(7000)
    gc.enable()


# The same examples in every run; `pytest --hypothesis-profile=long` tries many more, different ones each time.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("long", max_examples=3000, deadline=None)
# For programs that break the code on purpose: they need to know that a test fails, not the smallest example.
settings.register_profile(
    "mutation", max_examples=25, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate], database=None
)
settings.load_profile("suite")

SMALL = """\
extract:
  weights: clip
  fps: 0.5
train:
  model: {width: 32, heads: 2}
  spatial: {top_k: 4}
  train: {epochs: 3, warmup_steps: 2, batch_size: 15, folds: 0, splice: 0, pseudo_labels: 0}
"""


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """Ctrl-C works in the tests and the processes that they start. A shell that runs them in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _quick_pictures() -> Iterator[None]:
    """Pictures are quick (see `quick_pictures`), in the processes of `Preloaded` as well, but for tests with `real_pictures`."""
    with pytest.MonkeyPatch.context() as patch:
        quick_pictures.make_quick(patch.setattr)
        yield


@pytest.fixture(scope="session", autouse=True)
def _small_slots() -> Iterator[None]:
    """Decode processes reserve 24 MB for frames, not 96: to clear that memory takes as long as to decode a small video."""
    from costl.pipeline.decode.worker import DecodeSettings

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DecodeSettings.__init__.__kwdefaults__, "slot_bytes", 8 << 20)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_runs_of_the_working_folder(tmp_path_factory) -> Iterator[None]:
    """A search without a named run takes none of those in the folder in which pytest was started."""
    from costl.search import run_choice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_choice, "RUNS", tmp_path_factory.getbasetemp() / "no runs")
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """No test loses power, so that `os.fsync` would only take time. Tests of crashes put their own function in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _forked_processes() -> Iterator[None]:
    """Processes that CoSTL starts in the process of the tests are forked (see `forked_processes`)."""
    from forked_processes import fork_decode_processes

    with pytest.MonkeyPatch.context() as patch:
        fork_decode_processes(patch.setattr)
        yield


@pytest.fixture
def real_pictures(monkeypatch) -> None:
    """All pictures as a user gets them."""
    from costl.plots import predictions, style, training_curves

    monkeypatch.delenv(quick_pictures.LEVEL)
    monkeypatch.setattr(predictions, "MOST_DRAWN", 40)
    for module in (predictions, training_curves):
        monkeypatch.setattr(module, "to_png", style.to_png)


@pytest.fixture
def report_figure(capsys) -> Callable[[str], None]:
    """Prints a figure of docs/reliability.md if COSTL_FIGURES is set."""

    def print_figure(text: str) -> None:
        if os.environ.get("COSTL_FIGURES"):
            with capsys.disabled():
                print(f"\n{text}", flush=True)

    return print_figure


@dataclass(frozen=True)
class World:
    """A data folder and its finished cache; tests that change either take a copy."""

    videos: Path
    cache: Path

    def copy(self, folder: Path, **annotations: str | None) -> World:
        """A copy of the world in `folder`, with other annotations in its cache."""
        shutil.copytree(self.videos, folder / "videos")
        shutil.copy(self.cache, folder / "feats.h5")
        shutil.copytree(self.cache.with_name("feats.h5.parts"), folder / "feats.h5.parts")
        self.annotate(folder / "feats.h5", **annotations)
        return World(folder / "videos", folder / "feats.h5")

    @staticmethod
    def annotate(cache: Path, **annotations: str | None) -> None:
        """Replaces the JSONL text of splits; None removes the split."""
        with h5py.File(cache, "r+") as file:
            for split, text in annotations.items():
                del file["annotations"][split]
                if text is not None:
                    file["annotations"][split] = np.bytes_(text.encode())


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """Four training, two validation, two test and two unseen videos of 12 clips and 64 pixels, with costl-tiny."""
    from costl.pipeline.extract import extract
    from costl.pipeline.world.write_world import WorldSettings, write_sample

    folder = tmp_path_factory.mktemp("world")
    counts = {"train": 4, "val": 2, "test": 2, "test_unseen": 2}
    settings = WorldSettings(videos=counts, queries=3, train_queries=6, clips=(12, 12), side=64)
    write_sample(folder / "videos", settings=settings, processes=1)
    (folder / "videos" / "costl.yaml").write_text(SMALL, encoding="utf-8")
    report = extract(folder / "videos", out=folder / "feats.h5", device="cpu", workers=1)
    assert report.failed == ()
    return World(folder / "videos", folder / "feats.h5")
