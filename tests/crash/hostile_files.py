"""Hostile files: how each is made, which commands read it, and how they refuse it.

`HOSTILE_FILES` is the list. Each changes or replaces one file of a finished workspace (`write_workspace`).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numbered_videos import frame_times, make_video
from safetensors.torch import load_file, save_file
from small_cache import unit_vectors

from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.pack import pack
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace, SentenceTokens, TokenProjection
from costl.pipeline.world.write_world import TINY_CLIP
from costl.train import train
from costl.training.checkpoint import HEADER, _digest

VIDEO = "test_0000"
CACHE, PARTS, PACKED, RUN = "feats.h5", "feats.h5.parts", "packed.h5", "run"
PART = f"{PARTS}/{VIDEO}.h5"
MARKER = "marker.h5"  # links and virtual datasets lead to it; a command that opens it has followed one
SIDE_EFFECT = "side-effect"  # code hidden in a hostile file would create it
HUGE = 1 << 40
VIDEOS, CLIPS, CHANNELS, EMBEDDING_WIDTH, WORD_WIDTH = ("test_0000", "train_0000", "val_0000"), 12, 8, 4, 6

Change = Callable[[Path, Path], None]  # (file to change, marker file next to the workspace)
Put = Callable[[h5py.File, str, Path], None]  # (file, name of the item to create, marker file)


@dataclass(frozen=True)
class HostileFile:
    """One hostile file: the file and its change, the commands that read it, their exit code, part of their message."""

    name: str
    file: str
    change: Change
    commands: tuple[str, ...]
    exit_code: int
    message: str

    def write(self, workspace: Path) -> None:
        """Changes the file in a workspace of hard links; it is copied first, so that the original stays as it is."""
        path = workspace / self.file
        if path.exists():
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data)
        self.change(path, workspace.parent / MARKER)


# Every command as typed in a workspace. The sandboxed process reports what they write.
COMMANDS = {
    "status": f"cache status {CACHE}",
    "verify": f"cache verify {CACHE}",
    "quick": f"cache verify {CACHE} --quick",
    "inspect": f"cache inspect {CACHE}",
    "inspect-video": f"cache inspect {CACHE} {VIDEO}",
    "gc": f"cache gc {CACHE} --delete",
    "pack": f"cache pack {CACHE} --out new.h5",
    "merge": f"cache merge new.h5 {CACHE}",
    "train": f"train --cache {CACHE} --device cpu --out new --set train.epochs=1",
    "evaluate": f"evaluate --run {RUN} --cache {CACHE} --device cpu --out new",
    "extract": f"extract --videos videos --out {CACHE} --device cpu --workers 1",
    "add": f"cache add-queries {CACHE} --annotations more.jsonl --device cpu",
    "report": f"report {RUN} --cache {CACHE} --out new.html --device cpu",
    "diagnose": f"study diagnose --cache {CACHE}",
    "packed-status": f"cache status {PACKED}",
    "packed-verify": f"cache verify {PACKED}",
    "packed-inspect": f"cache inspect {PACKED}",
    "packed-evaluate": f"evaluate --run {RUN} --cache {PACKED} --device cpu --out new",
    "unpack": f"cache unpack {PACKED} --out new/feats.h5",
    "predict": f"predict videos/{VIDEO}.mp4 ball --run {RUN} --cache-dir kept --device cpu",
    "export": f"data export {RUN} new",
    "resume": f"train --resume {RUN} --cache {CACHE} --device cpu",
    "newest": "evaluate --device cpu --out new",
    "config": f"train --cache {CACHE} --config more.yaml --device cpu --out new",
    "folder": "extract --videos videos --out new.h5 --device cpu --workers 1",
    "annotations": "extract --videos videos --annotations more.jsonl --out new.h5 --device cpu --workers 1",
    "predictions": "evaluate --predictions more.jsonl --truth videos/test.jsonl",
    "truth": "evaluate --predictions predictions.jsonl --truth more.jsonl",
    "compare": "study compare predictions.jsonl more.jsonl --truth videos/test.jsonl",
}

# The commands that refuse an intact workspace, and part of their message: each has read the file in question by then.
REFUSED_WHEN_INTACT = {
    "extract": "was made with other settings",
    "diagnose": "objects.jsonl: cannot be read",
    "predict": "does not say where its CLIP weights are",
    "resume": "finished already",
    "predictions": "a file of annotations",
    "compare": "a file of annotations",
}

INDEX_COMMANDS = (
    *("status", "verify", "quick", "inspect", "gc", "pack", "merge", "train", "evaluate", "extract", "add", "report"),
    "diagnose",
)
PACKED_COMMANDS = ("packed-status", "packed-verify", "packed-inspect", "packed-evaluate", "unpack")
PART_COMMANDS = ("verify", "inspect-video", "pack", "evaluate", "merge")
RUN_COMMANDS = ("evaluate", "report", "predict", "export")


# HDF5


def edit_hdf5(change: Callable[[h5py.File, Path], None]) -> Change:
    def make(path: Path, marker: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file, marker)

    return make


def replace_item(name: str, put: Put) -> Change:
    """Another item under this name."""

    def change(file: h5py.File, marker: Path) -> None:
        del file[name]
        put(file, name, marker)

    return edit_hdf5(change)


def soft_link(file: h5py.File, name: str, marker: Path) -> None:
    file.copy(h5py.File(marker)["items"], "elsewhere")
    file[name] = h5py.SoftLink(f"/elsewhere/{name.rpartition('/')[2]}")


def external_link(file: h5py.File, name: str, marker: Path) -> None:
    file[name] = h5py.ExternalLink(marker, f"/items/{name.rpartition('/')[2]}")


def external_storage(file: h5py.File, name: str, marker: Path) -> None:
    file.create_dataset(name, (8, 8), "<f4", external=[(str(marker), 0, 256)])


def virtual_dataset(file: h5py.File, name: str, marker: Path) -> None:
    layout = h5py.VirtualLayout((8, 8), "<f4")
    layout[:] = h5py.VirtualSource(marker, "endless", (8, 8))
    file.create_virtual_dataset(name, layout)


def unlimited_virtual_dataset(file: h5py.File, name: str, marker: Path) -> None:
    """HDF5 opens its source as soon as the dataset is opened, to find its current length."""
    layout = h5py.VirtualLayout((8, 8), "<f4", maxshape=(None, 8))
    source = h5py.VirtualSource(marker, "endless", (8, 8), maxshape=(None, 8))
    layout[: h5py.h5s.UNLIMITED, :] = source[: h5py.h5s.UNLIMITED, :]
    file.create_virtual_dataset(name, layout)


def shape_bomb(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (HUGE, 8), "<f4")


def chunk_bomb(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (HUGE, 8), "<f4", chunks=(1024, 8))


def gzip_bomb(file: h5py.File, name: str, _: Path) -> None:
    """8 MB of zeros in a few kilobytes; the shape claims 512 MB."""
    bomb = file.create_dataset(name, (1 << 24, 8), "<f4", chunks=(1 << 18, 8), compression="gzip", compression_opts=9)
    bomb[: 1 << 18] = 0


def text_bomb(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (), f"S{(1 << 31) - 1}", chunks=None)


def string_objects(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, data=["a", "b"], dtype=h5py.string_dtype())


def variable_length_text(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, data="[]", dtype=h5py.string_dtype())


def variable_length_array(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (8,), h5py.vlen_dtype(np.float32))


def compound(file: h5py.File, name: str, _: Path) -> None:
    file[name] = np.zeros((8, 8), [("x", "<f4"), ("y", "<i8")])


def reference(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (8,), h5py.ref_dtype)


def named_type(file: h5py.File, name: str, _: Path) -> None:
    file[name] = np.dtype("<f4")


def a_group(file: h5py.File, name: str, _: Path) -> None:
    file.create_group(name)


def no_item(file: h5py.File, name: str, _: Path) -> None:
    """Removes the item without a replacement."""


def text_dataset(value: Any) -> Put:
    value = value if isinstance(value, str) else json.dumps(value)
    return lambda file, name, _: file.create_dataset(name, data=np.bytes_(value.encode()))


def array_dataset(values: Any, dtype: str) -> Put:
    return lambda file, name, _: file.create_dataset(name, data=np.array(values, dtype))


def video_row(**values: Any) -> Change:
    """Other values in the index row of a video."""

    def change(file: h5py.File, _: Path) -> None:
        stored = json.loads(bytes(file["rows"][()]))
        for stored_row in stored:
            if stored_row["id"] == VIDEO:
                stored_row |= values
        del file["rows"]
        file["rows"] = np.bytes_(json.dumps(stored).encode())

    return edit_hdf5(change)


def group_cycle(where: str) -> Change:
    return edit_hdf5(lambda file, _: file.__setitem__(where, file["/"]))


def format_999(file: h5py.File, _: Path) -> None:
    file.attrs["format"] = 999


def format_as_text(file: h5py.File, _: Path) -> None:
    file.attrs["format"] = np.bytes_("1" * 60_000)


def user_block(path: Path, _: Path) -> None:
    """HDF5 starts after the first byte."""
    path.write_bytes(b"#!/bin/sh\n".ljust(512, b"\0") + path.read_bytes())


def symlink(path: Path, marker: Path) -> None:
    """The file itself is a symbolic link."""
    path.unlink()
    path.symlink_to(marker)


def named_pipe(path: Path, _: Path) -> None:
    path.unlink()
    os.mkfifo(path)


LINKS = {"an external link": external_link, "a soft link": soft_link}
EXTERNAL_DATA = {
    "external storage": external_storage,
    "a virtual dataset": virtual_dataset,
    "an unlimited virtual dataset": unlimited_virtual_dataset,
}
BOMBS = {"a shape bomb": shape_bomb, "a chunked bomb": chunk_bomb, "a gzip bomb": gzip_bomb}
TYPES = {
    "objects": string_objects,
    "an array of variable lengths": variable_length_array,
    "a compound": compound,
    "references": reference,
    "a named type": named_type,
    "a group": a_group,
    "nothing": no_item,
}
UNSAFE_IDS = ("../../etc/passwd", "/etc/passwd", "..", "a\0b", "a/../../b", "C:evil")
DEEPLY_NESTED = "[" * 100_000


def in_an_index(name: str, change: Change, message: str, exit_code: int = 3) -> tuple[HostileFile, ...]:
    """For every command that reads an index: as a file of its own, and in a packed file."""
    return (
        HostileFile(f"index: {name}", CACHE, change, INDEX_COMMANDS, exit_code, message),
        HostileFile(f"packed: {name}", PACKED, change, PACKED_COMMANDS, exit_code, message),
    )


def in_a_part(
    name: str, put: Put, message: str, *, dataset: str = "tokens", packed_message: str = ""
) -> tuple[HostileFile, ...]:
    """In a part, and in the same part inside a packed file."""
    inside = f"packed/parts/{VIDEO}/{dataset}"
    commands = PART_COMMANDS if dataset == "tokens" else ("verify", "inspect-video", "pack", "merge")
    packed_commands = ("packed-verify", "unpack")
    return (
        HostileFile(f"part: {name} for {dataset}", PART, replace_item(dataset, put), commands, 3, message),
        HostileFile(
            f"packed part: {name} for {dataset}",
            PACKED,
            replace_item(inside, put),
            packed_commands,
            3,
            packed_message or message,
        ),
    )


HDF5 = (
    *(h for n, put in LINKS.items()
      for h in in_an_index(f"{n} for its rows", replace_item("rows", put), "a link elsewhere")),
    *(h for n, put in LINKS.items()
      for h in in_an_index(f"{n} on a path", replace_item("joint", put), "a link elsewhere")),
    *(h for n, put in LINKS.items()
      for h in in_an_index(f"{n} for annotations", replace_item("annotations/train", put), "a link elsewhere")),
    *(h for n, put in EXTERNAL_DATA.items() for h in in_an_index(
        f"{n} for a matrix", replace_item("joint/projection", put), "not what costl extract writes")),
    *(h for n, put in BOMBS.items()
      for h in in_an_index(f"{n} for a matrix", replace_item("joint/projection", put), "joint/projection")),
    *(h for n, put in TYPES.items()
      for h in in_an_index(f"{n} for a matrix", replace_item("joint/norm_weight", put), "joint/norm_weight")),
    *in_an_index("a text of 2 GB", replace_item("rows", text_bomb), "rows claims 2147483647 bytes"),
    *in_an_index("a text of variable length", replace_item("rows", variable_length_text), "rows is object"),
    *in_an_index("NaN in a matrix", replace_item("joint/norm_weight", array_dataset([np.nan] * 8, "<f4")), "joint"),
    *in_an_index("infinity in a matrix", replace_item("joint/norm_bias", array_dataset([np.inf] * 8, "<f4")), "joint"),
    *in_an_index("format 999", edit_hdf5(format_999), "cache format 999, this program reads formats up to 2"),
    *in_an_index("a format of 60 000 digits", edit_hdf5(format_as_text), "'format' is not one int"),
    *in_an_index("a cycle", group_cycle("annotations/round"), "is not a dataset"),
    *(h for c in UNSAFE_IDS
      for h in in_an_index(f"the id {c!r}", video_row(id=c, part=f"{c}.h5"), "not a safe video id")),
    *in_an_index("a part elsewhere", video_row(part="../../etc/passwd"), "names the part"),
    *in_an_index("words elsewhere", replace_item("words", text_dataset("../../etc/passwd")), "foreign or damaged"),
    *in_an_index("an enormous number of clips", video_row(clips=5 * 10**11, duration_s=1e12), "The index is damaged"),
    *in_an_index("a negative number of clips", video_row(clips=-1), "clips"),
    *in_an_index("a duration of 400 digits", video_row(duration_s=10**400), "damaged"),
    *in_an_index("rows nested deeply", replace_item("rows", text_dataset(DEEPLY_NESTED)), "nested too deeply"),
    *in_an_index(
        "rows with a key twice", replace_item("rows", text_dataset('[{"id": "a", "id": "b"}]')), "given twice"),
    *in_an_index(
        "NaN in its settings",
        replace_item("settings", text_dataset('{"train": {"ema": NaN}}')), "NaN is not a number"),
    *in_an_index("1e999 in its features", replace_item("features", text_dataset('{"fps": 1e999}')), "1e999 is larger"),
    *in_an_index(
        "a number of 5000 digits", replace_item("fingerprint", text_dataset('{"a": ' + "9" * 5000 + "}")), "damaged"),
    *(h for n, put in LINKS.items() for h in in_a_part(n, put, "a link elsewhere")),
    *(h for n, put in EXTERNAL_DATA.items() for h in in_a_part(n, put, "not what costl extract writes")),
    *(h for n, put in BOMBS.items() for h in in_a_part(n, put, "tokens")),
    *(h for n, put in TYPES.items()
      for h in in_a_part(n, put, "tokens", packed_message="its table is damaged" if put is no_item else "")),
    *in_a_part(
        "falling times", array_dataset(np.arange(12.0)[::-1], "<f8"), "times that do not rise", dataset="times_s"),
    *in_a_part("times that are NaN", array_dataset([np.nan] * 12, "<f8"), "times that do not rise", dataset="times_s"),
    HostileFile("part: a cycle", PART, group_cycle("round"), ("pack",), 3, "is not a dataset"),
    HostileFile("part: a link in its place", PART, symlink, PART_COMMANDS, 3, "a link, expected a file"),
    HostileFile("part: a pipe in its place", PART, named_pipe, PART_COMMANDS, 3, "no such file"),
    HostileFile("index: a pipe in its place", CACHE, named_pipe,
                ("status", "verify", "inspect", "gc", "pack", "merge", "train", "add"), 3, "no such file"),
)  # fmt: skip


# Checkpoints


class _Bomb:
    """Unpickling it creates the file SIDE_EFFECT."""

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {SIDE_EFFECT}",))


def pickled(path: Path, _: Path) -> None:
    torch.save({"weights": _Bomb()}, path)


def pickled_plain(path: Path, _: Path) -> None:
    path.write_bytes(pickle.dumps(_Bomb()))


def pickled_old(path: Path, _: Path) -> None:
    torch.save({"weights": _Bomb()}, path, _use_new_zipfile_serialization=False)


def edit_header(change: Callable[[dict], Any]) -> Change:
    """Another header for the same tensors."""

    def make(path: Path, _: Path) -> None:
        data = path.read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        old = json.loads(data[8 : 8 + size])
        new = change(old) or old
        encoded = (new if isinstance(new, str) else json.dumps(new)).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + size :])

    return make


def header_size(value: int) -> Change:
    def make(path: Path, _: Path) -> None:
        path.write_bytes(struct.pack("<Q", value) + path.read_bytes()[8:])

    return make


def edit_first_tensor(**values: Any) -> Change:
    def change(tensors: dict) -> None:
        name = next(name for name in tensors if name != "__metadata__")
        tensors[name] |= values

    return edit_header(change)


def overlapping_offsets(tensors: dict) -> None:
    first_name, second_name, *_ = (name for name in tensors if name != "__metadata__")
    tensors[first_name]["data_offsets"] = tensors[second_name]["data_offsets"]


def duplicate_tensor(tensors: dict) -> str:
    name = next(name for name in tensors if name != "__metadata__")
    return f"{{{json.dumps(name)}: {json.dumps(tensors[name])}, {json.dumps(tensors)[1:]}"


def with_valid_checksum(change: Callable[[dict, dict], Any]) -> Change:
    """Other content with its correct checksum."""

    def make(path: Path, _: Path) -> None:
        stored = load_file(path)
        content: dict = {"format": 1, "meta": {"epoch": 1}}
        encoded = change(content, stored)
        if encoded is None:
            encoded = json.dumps(content | {"sha256": _digest(content, stored)})
        save_file(stored, path, metadata={HEADER: encoded})

    return make


def put_meta(meta: Any) -> Change:
    return with_valid_checksum(lambda content, _: content.__setitem__("meta", meta))


WEIGHTS = f"{RUN}/best.safetensors"
LARGEST_MODEL = "model: {width: 16384, heads: 1}\ntemporal: {layers: 64}\n"  # the largest model that the settings allow


def in_checkpoint(name: str, change: Change, message: str, commands: tuple[str, ...] = RUN_COMMANDS) -> HostileFile:
    return HostileFile(f"checkpoint: {name}", WEIGHTS, change, commands, 3, message)


def in_unfinished_run(change: Change) -> Change:
    """In a run that is not finished, so that it can be resumed."""

    def make(path: Path, marker: Path) -> None:
        path.with_name("summary.json").unlink()
        change(path, marker)

    return make


CHECKPOINTS = (
    in_checkpoint("a pickle in a zip", pickled, "a pickle, which could run code, so it was not opened"),
    in_checkpoint("a bare pickle", pickled_plain, "a pickle, which could run code, so it was not opened"),
    in_checkpoint("an old pickle of torch", pickled_old, "a pickle, which could run code, so it was not opened"),
    in_checkpoint("a header of 2^62 bytes", header_size(1 << 62), "damaged"),
    in_checkpoint("a header of 90 MB", header_size(90_000_000), "damaged"),
    in_checkpoint("a header that is not JSON", edit_header(lambda _: "{" * 1000), "damaged"),
    in_checkpoint("a header nested deeply", edit_header(lambda _: "[" * 100_000), "damaged"),
    in_checkpoint("an enormous shape", edit_first_tensor(shape=[HUGE, HUGE, HUGE]), "damaged"),
    in_checkpoint("a shape below zero", edit_first_tensor(shape=[-1]), "damaged"),
    in_checkpoint("offsets beyond the end", edit_first_tensor(data_offsets=[0, HUGE]), "damaged"),
    in_checkpoint("offsets in the wrong order", edit_first_tensor(data_offsets=[64, 0]), "damaged"),
    in_checkpoint("offsets that overflow", edit_first_tensor(data_offsets=[(1 << 64) - 1, 4]), "damaged"),
    in_checkpoint("offsets that overlap", edit_header(overlapping_offsets), "damaged"),
    in_checkpoint("an unknown type", edit_first_tensor(dtype="PYOBJECT"), "damaged"),
    in_checkpoint("another type", edit_first_tensor(dtype="F64"), "damaged"),
    in_checkpoint("a name twice", edit_header(duplicate_tensor), "damaged"),
    in_checkpoint(
        "meta nested deeply", with_valid_checksum(lambda *_: '{"format": 1, "meta": ' + DEEPLY_NESTED), "damaged"),
    in_checkpoint("meta that names no tensor", put_meta({"average": {"~tensor": "~nowhere"}}), "damaged"),
    in_checkpoint("meta with a list for a key", put_meta({"~items": [[[], 1]]}), "damaged"),
    in_checkpoint("meta that is not a mapping", put_meta(7), "damaged"),
    in_checkpoint("no meta", with_valid_checksum(lambda content, _: content.pop("meta") and None), "damaged"),
    in_checkpoint("no weights", with_valid_checksum(lambda _, stored: stored.clear()), "", ("evaluate", "report")),
    in_checkpoint("weights of another shape", with_valid_checksum(lambda _, stored: stored.update(
        {name: torch.zeros(3, 3) for name in stored})), "do not fit", ("evaluate", "report")),
    HostileFile("checkpoint: a count that is a text", f"{RUN}/last.safetensors",
                in_unfinished_run(put_meta({"counts": {"epoch": "x"}})), ("resume",), 3, "of another version"),
)  # fmt: skip


# Runs and settings


def file_content(content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda path, _: path.write_bytes(data)


def edit_json(**values: Any) -> Change:
    return lambda path, _: path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


BILLION_LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
BAD_YAML = {
    "a tag that calls": (
        f'train: !!python/object/apply:os.system ["touch {SIDE_EFFECT}"]\n',
        "could not determine a constructor",
    ),
    "a tag that makes": (
        f"train: !!python/object/new:os.system [touch {SIDE_EFFECT}]\n",
        "could not determine a constructor",
    ),
    "a tag that names": ("train: !!python/name:os.system\n", "could not determine a constructor"),
    "a billion laughs": (BILLION_LAUGHS, "values when its aliases are written out"),
    "a billion laughs after a setting": ("train: {epochs: 1}\n" + BILLION_LAUGHS, "aliases"),
    "an alias of itself": ("train: &a [*a]\n", "an alias (*name) inside what it stands for"),
    "deep nesting": ("train: " + "[" * 20_000, "nested too deeply"),
    "a number of 5000 digits": ("train: {epochs: " + "9" * 5000 + "}\n", "digits"),
    "a key twice": ("train: {epochs: 1, epochs: 2}\n", "given twice"),
    "two million characters": ("#" * (2 << 20), "characters, at most"),
    "not UTF-8": (b"train: \xff\xfe\n", "utf-8"),
}
SETTINGS = (
    *(HostileFile(f"settings: {n}", "more.yaml", file_content(data), ("config",), 2, message)
      for n, (data, message) in BAD_YAML.items()),
    *(HostileFile(f"costl.yaml: {n}", "videos/costl.yaml", file_content(data), ("folder",), 2, message)
      for n, (data, message) in BAD_YAML.items()),
    *(HostileFile(f"config.yaml of a run: {n}", f"{RUN}/config.yaml", file_content(data), RUN_COMMANDS, 2, message)
      for n, (data, message) in BAD_YAML.items()),
    HostileFile("config.yaml of a run: a model of a hundred gigabytes", f"{RUN}/config.yaml",
                file_content(LARGEST_MODEL),
                ("evaluate", "report", "predict"), 3, "a larger model"),
    HostileFile("config.yaml of a run to resume: a model of a hundred gigabytes", f"{RUN}/config.yaml",
                in_unfinished_run(file_content(LARGEST_MODEL)),
                ("resume",), 3, "a larger model"),
    *(HostileFile(f"run.json: {n}", f"{RUN}/run.json", change, (*RUN_COMMANDS, "resume"), 3, "run.json: damaged")
      for n, change in {
          "nested deeply": file_content(DEEPLY_NESTED),
          "a list": file_content("[]"),
          "empty": file_content(""),
          "not UTF-8": file_content(b"\xff\xfe"),
          "a key twice": file_content('{"cache": "a", "cache": "b"}'),
          "1e999": file_content('{"cache": "a", "longest_clips": 1e999}'),
          "a cache that is a list": edit_json(cache=[1]),
          "a grid of moments below zero": edit_json(moment_grid_s=-2.0),
          "a fingerprint that is a text": edit_json(fingerprint="abc"),
          "half a character": file_content(json.dumps({"cache": "\ud800"})),
      }.items()),
    HostileFile("run.json: started is not a time", "runs/a/run.json", edit_json(started="tomorrow"), ("newest",), 2,
                "no trained run"),
)  # fmt: skip


# Annotations and predictions


def annotation_line(**values: Any) -> str:
    defaults = {"qid": 1, "query": "a ball", "vid": VIDEO, "duration": 24.0, "relevant_windows": [[0, 4]]}
    return json.dumps(defaults | values) + "\n"


BAD_ANNOTATIONS = {
    "NaN": (annotation_line(duration=float("nan")), "NaN is not a number JSON knows"),
    "minus infinity": (annotation_line(relevant_windows=[[float("-inf"), 2]]), "-Infinity is not a number JSON knows"),
    "1e999": ('{"qid": 1, "query": "a", "vid": "b", "duration": 1e999}\n', "1e999 is larger than any number"),
    "a number of 5000 digits": ('{"qid": 1, "query": "a", "vid": "b", "duration": ' + "9" * 5000 + "}\n", "digits"),
    "a number of 4000 digits": ('{"qid": 1, "query": "a", "vid": "b", "duration": ' + "9" * 4000 + "}\n", "duration"),
    "deep nesting": (DEEPLY_NESTED + "\n", "nested too deeply"),
    "deep nesting inside": ('{"qid": 1, "more": ' + '{"a":' * 50_000 + "\n", "nested too deeply"),
    "half a character": (annotation_line(query="a \ud800 ball"), "half a character"),
    "half a character in a name": (annotation_line(vid="\udc80"), "half a character"),
    "a key twice": ('{"qid": 1, "qid": 2, "query": "a", "vid": "b", "duration": 2}\n', "'qid' is given twice"),
    "an enormous line": ('{"qid": [' + "1," * 3_000_000 + '1], "query": 7, "vid": "b", "duration": 2}\n', "1: "),
    "a list": ("[1, 2]\n", "expected an object"),
    "zeros": ("\0" * 1000, "not JSON"),
}


def prediction_line(**values: Any) -> str:
    defaults = {
        "qid": 1,
        "query": "a ball",
        "vid": VIDEO,
        "pred_relevant_windows": [[0, 4, 1.0]],
        "pred_saliency_scores": [0.0] * CLIPS,
    }
    return json.dumps(defaults | values) + "\n"


BAD_PREDICTIONS = {
    "NaN": (prediction_line(pred_saliency_scores=[float("nan")]), "NaN is not a number JSON knows"),
    "infinity": (prediction_line(pred_relevant_windows=[[0, float("inf"), 1]]), "Infinity is not a number JSON knows"),
    "1e999": (prediction_line().replace("1.0]", "1e999]"), "1e999 is larger than any number"),
    "a number of 5000 digits": (prediction_line().replace("1.0]", "9" * 5000 + "]"), "digits"),
    "a number of 4000 digits": (prediction_line().replace("1.0]", "9" * 4000 + "]"), "a finite number"),
    "a qid of 4000 digits": (prediction_line().replace('"qid": 1', '"qid": ' + "9" * 4000), "at most 64 bits"),
    "deep nesting": (DEEPLY_NESTED + "\n", "nested too deeply"),
    "half a character": (prediction_line(query="a \ud800 ball"), "half a character"),
    "a key twice": (prediction_line().replace("{", '{"qid": 2, ', 1), "'qid' is given twice"),
    "an enormous line": (prediction_line(pred_relevant_windows=[[0] * 1_000_000]), "not 3 numbers long"),
    "a list": ("[1, 2]\n", "expected an object"),
}
JSONL_FILES = (
    *(HostileFile(f"annotations: {n}", "more.jsonl", file_content(data), ("annotations", "add", "truth"), 2, message)
      for n, (data, message) in BAD_ANNOTATIONS.items() if n != "a list"),
    *(HostileFile(f"predictions: {n}", "more.jsonl", file_content(data), ("predictions", "compare"), 2, message)
      for n, (data, message) in BAD_PREDICTIONS.items()),
    *(HostileFile(f"annotations of {split} in a cache: {n}", CACHE,
                  replace_item(f"annotations/{split}", text_dataset(data)), commands, 2, message)
      for split, commands in (("train", ("train",)), ("test", ("evaluate", "report")))
      for n, (data, message) in BAD_ANNOTATIONS.items() if n not in ("an enormous line", "zeros")),
    HostileFile("annotations: a video of a petasecond", "more.jsonl",
                file_content(annotation_line(duration=1e15)), ("truth",), 2, ""),
    HostileFile("annotations: an enormous clip id", "more.jsonl",
                file_content(annotation_line(relevant_clip_ids=[HUGE], saliency_scores=[[1, 2, 3]])),
                ("truth",), 2, ""),
)  # fmt: skip

HOSTILE_FILES = (*HDF5, *CHECKPOINTS, *SETTINGS, *JSONL_FILES)


SMALL_MODEL = {
    "model": {"width": 16, "heads": 2},
    "spatial": {"top_k": 2},
    "temporal": {"strides": [1, 2]},
    "train": {"epochs": 1, "warmup_steps": 1, "batch_size": 2},
}


def write_cache(path: Path) -> None:
    """A small cache of random features, with one query per split, that was begun in format 1: its index has matrices."""
    rng = np.random.default_rng(0)
    norm = rng.normal(size=(2, CHANNELS)).astype(np.float32)
    matrix = rng.normal(size=(CHANNELS, EMBEDDING_WIDTH)).astype(np.float32)
    projection = TokenProjection(norm_weight=norm[0], norm_bias=norm[1], norm_eps=1e-5, projection=matrix)
    joint = JointSpace(width=EMBEDDING_WIDTH, logit_scale=100.0)
    annotations = {video.partition("_")[0]: annotation_line(vid=video) for video in VIDEOS}
    contents = Contents({"model": "made up", "fps": 0.5}, 0.5, (2, 2), joint, CHANNELS, projection, annotations, SMALL_MODEL)
    words = np.ones((2, WORD_WIDTH), np.float16)
    sentence = np.ones(EMBEDDING_WIDTH, np.float32)
    query = SentenceTokens(words, sentence, texts=("a ", "ball "))
    with CacheWriter(path, contents, {"a ball": query}) as writer:
        writer.write_index()
        for video in VIDEOS:
            tokens = rng.normal(size=(CLIPS, 5, CHANNELS)).astype(np.float16)
            features = {"tokens": tokens, "joint": unit_vectors(rng, CLIPS, EMBEDDING_WIDTH)}
            times_s = np.arange(CLIPS) * 2.0 + 1.0
            writer.store(video, **features, times_s=times_s, duration_s=24.0, content_hash=f"hash of {video}")


def write_workspace(workspace: Path) -> None:
    """An intact workspace: a cache, the same packed, a run, a folder of videos, their annotations."""
    workspace.mkdir(parents=True)
    write_cache(workspace / CACHE)
    pack(workspace / CACHE, out=workspace / PACKED)
    train(workspace / CACHE, out=workspace / RUN, device="cpu")
    (workspace / "runs").mkdir()
    link_tree(workspace / RUN, workspace / "runs" / "a")
    (workspace / "videos").mkdir()
    for video in VIDEOS:
        make_video(workspace / "videos" / f"{video}.mp4", frame_times(10))
        split = video.partition("_")[0]
        (workspace / "videos" / f"{split}.jsonl").write_text(annotation_line(vid=video), encoding="utf-8")
    (workspace / "videos" / "costl.yaml").write_text(f"extract: {{weights: {TINY_CLIP}}}\n", encoding="utf-8")
    (workspace / "more.jsonl").write_text(annotation_line(), encoding="utf-8")
    (workspace / "predictions.jsonl").write_text(prediction_line(), encoding="utf-8")
    (workspace / "more.yaml").write_text("train: {epochs: 1}\n", encoding="utf-8")


def write_marker(workspace: Path) -> None:
    """Writes the marker file next to the workspace, with valid data wherever links and virtual datasets lead."""
    with h5py.File(workspace.parent / MARKER, "w") as file:
        file.create_dataset("endless", data=np.zeros((8, 8), "<f4"), maxshape=(None, 8), chunks=(8, 8))
        items = file.create_group("items")
        with h5py.File(workspace / CACHE) as cache, h5py.File(workspace / PART) as part:
            for name in ("rows", "joint", "annotations/train"):
                cache.copy(name, items, name.rpartition("/")[2])
            part.copy("tokens", items)


def link_tree(source: Path, target: Path) -> None:
    """A copy of the folder in which every file is a hard link."""
    shutil.copytree(source, target, copy_function=os.link, symlinks=True)
