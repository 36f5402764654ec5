"""Bad input of stage two: commands refuse it by name with the right exit code, and no file changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from costl.commands import main
from costl.data.annotations import Query
from costl.data.batch import collate
from costl.data.queries import data_notes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.train import train
from costl.training.checkpoint import load_checkpoint, save_checkpoint

DEVICE = ("--device", "cpu")
TRAIN = ("train", "--cache", "feats.h5", "--set", "train.epochs=1", *DEVICE)
RESUME = ("train", "--resume", "runs/a", *DEVICE)
EVALUATE = ("evaluate", "--run", "runs/a", *DEVICE)
ABLATE = ("study", "ablate", "--cache", "feats.h5", "--seeds", "1", *DEVICE)
PREDICT = ("predict", "videos/test_0000.mp4", "a red ring", "--cache-dir", "kept", *DEVICE)
EXPORT = ("data", "export", "runs/a", "model")


def costl(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def error_line(result: Result) -> str:
    """The one line of the error."""
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert "Traceback" not in result.stderr and result.stdout == ""
    return line


def tree(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> Path:
    """Two finished runs on the small world: `a` of the model, `cls` of the baseline."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("a", "cls"):
        settings = [*([] if name == "a" else ["model.kind=cls"]), "train.epochs=1"]
        train(world.cache, overrides=settings, out=folder / name, device="cpu")
    return folder


@pytest.fixture
def home(world, runs, tmp_path, monkeypatch) -> Path:
    """A folder to damage: the videos, `feats.h5` and the run `runs/a` on this cache."""
    world.copy(tmp_path)
    shutil.copytree(runs / "a", tmp_path / "runs" / "a")
    about = tmp_path / "runs" / "a" / "run.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"cache": str(tmp_path / "feats.h5")}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- bad input -----------------------------------------------------------------------------------------------


def row(split: str, /, **changes) -> Callable[[Path, Path], None]:
    """Changes the first row of a split."""

    def change(home: Path, _: Path) -> None:
        first, *rest = CacheReader(home / "feats.h5").annotations(split).splitlines()
        lines = [json.dumps(json.loads(first) | changes), *rest]
        with h5py.File(home / "feats.h5", "r+") as file:
            del file["annotations"][split]
            file["annotations"][split] = np.bytes_("\n".join(lines).encode())

    return change


def empty(split: str, /, *, labels_alone: bool = False) -> Callable[[Path, Path], None]:
    """Empties a split, or removes the labels of its rows."""

    def change(home: Path, _: Path) -> None:
        rows = map(json.loads, CacheReader(home / "feats.h5").annotations(split).splitlines())
        unlabelled = ({name: row[name] for name in ("qid", "query", "vid", "duration")} for row in rows)
        text = "\n".join(map(json.dumps, unlabelled)) if labels_alone else "\n"
        with h5py.File(home / "feats.h5", "r+") as file:
            del file["annotations"][split]
            file["annotations"][split] = np.bytes_(text.encode())

    return change


def damaged(name: str, how: str) -> Callable[[Path, Path], None]:
    """A checkpoint cut short, with a flipped bit, of another architecture, a pickle, or deleted; the run is unfinished."""

    def change(home: Path, runs: Path) -> None:
        (home / "runs" / "a" / "summary.json").unlink()
        path = home / "runs" / "a" / f"{name}.safetensors"
        content = bytearray(path.read_bytes())
        if how == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif how == "flipped":
            content[-9] ^= 1
            path.write_bytes(content)
        elif how == "other":
            shutil.copy(runs / "cls" / path.name, path)
        elif how == "pickle":
            torch.save({"a": torch.ones(1)}, path)
        elif how == "of another size":
            weights, meta = load_checkpoint(path.parent, name)
            save_checkpoint(path.parent, name, weights | {"saliency_head.out.weight": torch.ones(1, 7)}, meta)
        else:
            path.unlink()

    return change


def nothing(home: Path, _: Path) -> None:
    """The input is valid; the command is not."""


LATE = {"relevant_windows": [[2, 6], [40, 44]], "duration": 50}
LATE_MESSAGE = [
    "train.jsonl: 1 queries have a moment after the end of their video",
    "query 10000 [40.0, 44.0] in 'train_0000' (24 s long, 50 by",
]
NO_WORDS_MESSAGE = ["feats.h5: no words of 1 queries of", "'a sentence of later'. Run the same costl extract"]
OTHER_MODEL_MESSAGE = ["runs/a: its weights do not fit its settings, they are of another model", "Put its own back"]

WRONG = {
    "a late moment": (row("train", **LATE), TRAIN, 2, LATE_MESSAGE),
    "a late moment to validate on": (
        row("val", **LATE),
        TRAIN,
        2,
        ["val.jsonl: 1 queries have a moment", "in 'val_0000'"],
    ),
    "a late moment to score": (
        row("test", **LATE),
        EVALUATE,
        2,
        ["test.jsonl: 1 queries have a moment", "in 'test_0000'"],
    ),
    "a late moment in an ablation": (row("train", **LATE), ABLATE, 2, LATE_MESSAGE),
    "a moment past the duration": (
        row("train", relevant_windows=[[20, 30]]),
        TRAIN,
        2,
        ["train.jsonl:1: window [20.0, 30.0] is not 0 <= start < end <= duration (24.0)"],
    ),
    "a moment that ends before it starts": (row("train", relevant_windows=[[9, 4]]), TRAIN, 2, ["train.jsonl:1: "]),
    "a negative moment": (row("train", relevant_windows=[[-2, 4]]), TRAIN, 2, ["train.jsonl:1: window [-2.0, 4.0]"]),
    "a rated clip behind the end": (
        row("train", relevant_clip_ids=[12], saliency_scores=[[1, 2, 3]]),
        TRAIN,
        2,
        ["train.jsonl:1: clip 12 is rated, but there are 12 clips of two seconds in 24 s, counted from 0"],
    ),
    "a sentence without words": (
        row("train", query="a sentence of later"),
        TRAIN,
        3,
        [*NO_WORDS_MESSAGE, "query 10000"],
    ),
    "one to validate on": (row("val", query="a sentence of later"), TRAIN, 3, [*NO_WORDS_MESSAGE, "'val'"]),
    "one to score": (row("test", query="a sentence of later"), EVALUATE, 3, [*NO_WORDS_MESSAGE, "'test'"]),
    "one in an ablation": (row("val", query="a sentence of later"), ABLATE, 3, NO_WORDS_MESSAGE),
    "an empty training split": (empty("train"), TRAIN, 2, ["feats.h5: split 'train' is empty"]),
    "an empty validation split": (empty("val"), TRAIN, 2, ["feats.h5: split 'val' is empty"]),
    "an empty test split": (empty("test"), EVALUATE, 2, ["feats.h5: split 'test' is empty"]),
    "no label to learn from": (
        empty("train", labels_alone=True),
        TRAIN,
        2,
        ["feats.h5: no query of 'train' has a label"],
    ),
    "a rate of zero": (
        nothing,
        (*TRAIN, "--set", "train.learning_rate=0"),
        2,
        ["learning_rate is 0.0, expected above"],
    ),
    "a rate in quotes": (
        nothing,
        (*TRAIN, "--set", "train.learning_rate='1e-4'"),
        2,
        ["train.learning_rate is '1e-4', expected a number. Leave out the quotes."],
    ),
    "half of what resuming needs": (damaged("last", "cut"), RESUME, 3, ["last.safetensors: damaged"]),
    "a flipped bit": (
        damaged("last", "flipped"),
        RESUME,
        3,
        ["last.safetensors: damaged (its content is not what was"],
    ),
    "another architecture to resume": (damaged("last", "other"), RESUME, 3, [*OTHER_MODEL_MESSAGE, "no "]),
    "another size to resume": (
        damaged("last", "of another size"),
        RESUME,
        3,
        [*OTHER_MODEL_MESSAGE, "saliency_head.out.weight is [1, 7], expected [1, 32]"],
    ),
    "half the weights": (damaged("best", "cut"), EVALUATE, 3, ["best.safetensors: damaged"]),
    "a pickle": (damaged("best", "pickle"), EVALUATE, 3, ["best.safetensors: a pickle"]),
    "no weights": (damaged("best", "gone"), EVALUATE, 3, ["best.safetensors: no such checkpoint. This run has: last"]),
    "another architecture to evaluate": (damaged("best", "other"), EVALUATE, 3, OTHER_MODEL_MESSAGE),
    "another architecture to ask": (damaged("best", "other"), PREDICT, 3, OTHER_MODEL_MESSAGE),
    "another architecture to export": (damaged("best", "other"), EXPORT, 3, OTHER_MODEL_MESSAGE),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_by_name_before_anything_is_written(home, runs, name):
    change, command, code, parts = WRONG[name]
    change(home, runs)
    before = tree(home)
    result = costl(*command)
    sentence = error_line(result)
    assert result.exit_code == code and all(part in sentence for part in parts), sentence
    assert tree(home) == before


# --- features that are not finite --------------------------------------------------------------------------------


def write_value(home: Path, vid: str, value: float) -> None:
    """Writes a value into the fourth clip of a part, with a valid checksum, as another program could do."""
    from costl.pipeline.cache.part import locate_tokens

    path = home / "feats.h5.parts" / f"{vid}.h5"
    with h5py.File(path, "r+") as file:
        file["tokens"][3, 2, 5] = value
    reader = CacheReader(home / "feats.h5")
    with h5py.File(path) as file:
        checksum = locate_tokens(file, 12, reader.contents).checksum(file["times_s"][:])
    with h5py.File(home / "feats.h5", "r+") as file:
        rows = file["rows"][()].replace(reader.row(vid).checksum.encode(), checksum.encode())
        del file["rows"]
        file["rows"] = np.bytes_(rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("vid", "command"), [("val_0001", TRAIN), ("test_0001", EVALUATE)])
def test_non_finite_features_stop_training_and_evaluation_by_name(home, vid, command, value):
    write_value(home, vid, value)
    before = tree(home)
    result = costl(*command)
    assert result.exit_code == 3
    assert error_line(result).startswith(
        f"Error: video {vid!r}, clip 3: its features are not finite (NaN or infinity). Run costl cache verify"
    )
    after = tree(home)
    assert {name: after[name] for name in before} == before  # a new run may have started, next to the files from before
    new = after.keys() - before.keys()  # its steps are saved, to resume from when the cache is repaired
    assert not [name for name in new if name.endswith("best.safetensors") or "eval-" in name]


def test_verify_finds_non_finite_features_with_a_valid_checksum(home):
    assert verify(home / "feats.h5").damaged == ()
    write_value(home, "train_0002", np.nan)
    (damage,) = verify(home / "feats.h5").damaged
    assert damage.name == "train_0002" and "clip 3 of 'train_0002' holds non-finite values" in damage.problem
    result = costl("cache", "verify", "feats.h5")
    assert result.exit_code == 3 and "train_0002" in result.stdout


def test_non_finite_patches_do_not_matter_to_a_model_without_patches(home):
    write_value(home, "train_0002", np.nan)
    assert costl(*TRAIN, "--set", "spatial.steps=0").exit_code == 0


# --- moments at the very end -------------------------------------------------------------------------------------


class Short:
    """A cache of one video, of twelve clips of two seconds."""

    def __init__(self, reader: CacheReader):
        self._reader = reader
        self.fps, self.patch_grid, self.joint = reader.fps, reader.patch_grid, reader.joint

    def grid(self, video_id: str):
        return self._reader.grid("train_0000")

    def tokens(self, video_id: str, **how) -> np.ndarray:
        return self._reader.tokens("train_0000", **how)

    def joint_vectors(self, video_id: str, **how) -> np.ndarray:
        return self._reader.joint_vectors("train_0000", **how)

    def words(self, query: str):
        return next(iter(self._reader.word_table().values()))


@pytest.mark.parametrize(
    ("window", "moments"),
    [
        ((20.0, 24.9), [[10.0, 12.0]]),
        ((23.9, 24.9), [[11.95, 12.0]]),
        ((24.0, 24.9), [[11.0, 12.0]]),  # in the tail: the last clip stands for it
        ((25.9, 26.0), [[11.0, 12.0]]),  # the rounding of an annotation
        ((26.0, 30.0), []),  # refused before training, see above
    ],
)
def test_a_moment_after_the_last_clip_counts_as_the_last_clip(world, window, moments):
    batch = collate([Query(1, "a", "v", 30.0, (window,))], Short(CacheReader(world.cache)), patches=False)
    assert torch.allclose(batch.moments[0][batch.moment_mask[0]], torch.tensor(moments).reshape(-1, 2))
    assert batch.relevant.any() == bool(moments and moments[0][0] <= 11)


def test_data_notes_count_the_training_queries_without_a_label(world):
    features = CacheReader(world.cache)
    queries = [Query(1, "a", "train_0000", 24.0, ((0, 4),)), Query(2, "b", "train_0000", 24.0)]
    (note,) = data_notes("train", queries, features)
    assert note.startswith("train: 1 of 2 queries have no label")
    assert data_notes("train", queries[:1], features) == []
