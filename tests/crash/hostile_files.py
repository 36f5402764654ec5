"""A zoo of hostile files: every one with its maker, the commands that would read it, and how they refuse it.

`ZOO` is the list to read. A maker changes one file of a finished home (`Home`), or puts another in its place.
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
import videos as clips
from safetensors.torch import load_file, save_file

from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.pack import pack
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.world.sample import TINY_CLIP
from costl.train import train
from costl.training.checkpoint import HEADER, _digest

VIDEO = "test_0000"
CACHE, PARTS, PACKED, RUN = "feats.h5", "feats.h5.parts", "packed.h5", "run"
PART = f"{PARTS}/{VIDEO}.h5"
CANARY, MARK = "canary.h5", "somebody-was-here"
HUGE = 1 << 40
VIDEOS, CLIPS, CHANNELS, EMBEDDING, TEXT = ("test_0000", "train_0000", "val_0000"), 12, 8, 4, 6

Change = Callable[[Path, Path], None]  # (file to change, canary beside the home)


@dataclass(frozen=True)
class Hostile:
    """One hostile file: what is changed and how, the commands before which it is put, the exit code, part of the sentence."""

    name: str
    file: str
    change: Change
    commands: tuple[str, ...]
    code: int
    says: str

    def make(self, home: Path) -> None:
        """Puts it into a home, whose files are links to another one's: they are not written through."""
        path = home / self.file
        if path.exists():
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data)
        self.change(path, home.parent / CANARY)


# Every command as typed in a home. What they write would be seen.
COMMANDS = {
    "status": f"cache status {CACHE}",
    "verify": f"cache verify {CACHE}",
    "quick": f"cache verify {CACHE} --quick",
    "inspect": f"cache inspect {CACHE}",
    "look": f"cache inspect {CACHE} {VIDEO}",
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
    "predict": f"predict --video videos/{VIDEO}.mp4 --query ball --run {RUN} --cache-dir kept --device cpu",
    "export": f"data export {RUN} new",
    "resume": f"train --resume {RUN} --cache {CACHE} --device cpu",
    "newest": "evaluate --device cpu --out new",
    "config": f"train --cache {CACHE} --config more.yaml --device cpu --out new",
    "variants": f"study ablate --cache {CACHE} --variants more.yaml --out new --device cpu",
    "folder": "extract --videos videos --out new.h5 --device cpu --workers 1",
    "annotations": "extract --videos videos --annotations more.jsonl --out new.h5 --device cpu --workers 1",
    "predictions": "evaluate --predictions more.jsonl --truth videos/test.jsonl",
    "truth": "evaluate --predictions predictions.jsonl --truth more.jsonl",
    "compare": "study compare predictions.jsonl more.jsonl --truth videos/test.jsonl",
}

# What is said to a home in which everything is as it should be, where that is no success: each has read what it would.
BUT = {
    "extract": "was made with other settings",
    "diagnose": "does not say where its videos are",
    "predict": "does not say where its CLIP weights are",
    "resume": "finished already",
    "variants": "expected section.name=value",
    "predictions": "a file of annotations",
    "compare": "a file of annotations",
}

INDEX = (
    *("status", "verify", "quick", "inspect", "gc", "pack", "merge", "train", "evaluate", "extract", "add", "report"),
    "diagnose",
)
OF_PACKED = ("packed-status", "packed-verify", "packed-inspect", "packed-evaluate", "unpack")
OF_PART = ("verify", "look", "pack", "evaluate", "merge")
OF_WEIGHTS = ("evaluate", "report", "predict", "export")


# HDF5


def changed(change: Callable[[h5py.File, Path], None]) -> Change:
    def make(path: Path, canary: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file, canary)

    return make


def instead(name: str, put: Callable[[h5py.File, str, Path], None]) -> Change:
    """Something else under this name."""

    def change(file: h5py.File, canary: Path) -> None:
        del file[name]
        put(file, name, canary)

    return changed(change)


def soft(file: h5py.File, name: str, canary: Path) -> None:
    file.copy(h5py.File(canary)["things"], "elsewhere")
    file[name] = h5py.SoftLink(f"/elsewhere/{name.rpartition('/')[2]}")


def external(file: h5py.File, name: str, canary: Path) -> None:
    file[name] = h5py.ExternalLink(canary, f"/things/{name.rpartition('/')[2]}")


def external_storage(file: h5py.File, name: str, canary: Path) -> None:
    file.create_dataset(name, (8, 8), "<f4", external=[(str(canary), 0, 256)])


def virtual(file: h5py.File, name: str, canary: Path) -> None:
    layout = h5py.VirtualLayout((8, 8), "<f4")
    layout[:] = h5py.VirtualSource(canary, "endless", (8, 8))
    file.create_virtual_dataset(name, layout)


def virtual_without_end(file: h5py.File, name: str, canary: Path) -> None:
    """HDF5 opens its source when it is itself no more than opened, to see how long it is now."""
    layout = h5py.VirtualLayout((8, 8), "<f4", maxshape=(None, 8))
    source = h5py.VirtualSource(canary, "endless", (8, 8), maxshape=(None, 8))
    layout[: h5py.h5s.UNLIMITED, :] = source[: h5py.h5s.UNLIMITED, :]
    file.create_virtual_dataset(name, layout)


def shape_bomb(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (HUGE, 8), "<f4")


def chunk_bomb(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (HUGE, 8), "<f4", chunks=(1024, 8))


def gzip_bomb(file: h5py.File, name: str, _: Path) -> None:
    """64 MB of zeros in some kilobytes, declared ten thousand times as long."""
    bomb = file.create_dataset(name, (1 << 24, 8), "<f4", chunks=(1 << 18, 8), compression="gzip", compression_opts=9)
    bomb[: 1 << 18] = 0


def text_bomb(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (), f"S{(1 << 31) - 1}", chunks=None)


def objects(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, data=["a", "b"], dtype=h5py.string_dtype())


def object_text(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, data="[]", dtype=h5py.string_dtype())


def of_any_length(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (8,), h5py.vlen_dtype(np.float32))


def compound(file: h5py.File, name: str, _: Path) -> None:
    file[name] = np.zeros((8, 8), [("x", "<f4"), ("y", "<i8")])


def reference(file: h5py.File, name: str, _: Path) -> None:
    file.create_dataset(name, (8,), h5py.ref_dtype)


def named_type(file: h5py.File, name: str, _: Path) -> None:
    file[name] = np.dtype("<f4")


def a_group(file: h5py.File, name: str, _: Path) -> None:
    file.create_group(name)


def nothing(file: h5py.File, name: str, _: Path) -> None:
    """Taken away, nothing put there."""


def text(value: Any) -> Callable[[h5py.File, str, Path], None]:
    value = value if isinstance(value, str) else json.dumps(value)
    return lambda file, name, _: file.create_dataset(name, data=np.bytes_(value.encode()))


def array(values: Any, dtype: str) -> Callable[[h5py.File, str, Path], None]:
    return lambda file, name, _: file.create_dataset(name, data=np.array(values, dtype))


def row(**values: Any) -> Change:
    """Other values in the row of a video."""

    def change(file: h5py.File, _: Path) -> None:
        rows = json.loads(bytes(file["rows"][()]))
        for found in rows:
            if found["id"] == VIDEO:
                found |= values
        del file["rows"]
        file["rows"] = np.bytes_(json.dumps(rows).encode())

    return changed(change)


def cycle(where: str) -> Change:
    return changed(lambda file, _: file.__setitem__(where, file["/"]))


def middle(name: str, link: Callable[[h5py.File, str, Path], None]) -> Change:
    """A link where a path passes through."""
    return instead(name, link)


def format_999(file: h5py.File, _: Path) -> None:
    file.attrs["format"] = 999


def format_texts(file: h5py.File, _: Path) -> None:
    file.attrs["format"] = np.bytes_("1" * 60_000)


def user_block(path: Path, _: Path) -> None:
    """The file begins later than the first byte."""
    path.write_bytes(b"#!/bin/sh\n".ljust(512, b"\0") + path.read_bytes())


def linked(path: Path, canary: Path) -> None:
    """The file itself is a link."""
    path.unlink()
    path.symlink_to(canary)


def piped(path: Path, _: Path) -> None:
    path.unlink()
    os.mkfifo(path)


LINKS = {"an external link": external, "a soft link": soft}
ELSEWHERE = {
    "external storage": external_storage,
    "a virtual dataset": virtual,
    "a virtual dataset without end": virtual_without_end,
}
BOMBS = {"a shape bomb": shape_bomb, "a chunked bomb": chunk_bomb, "a gzip bomb": gzip_bomb}
TYPES = {
    "objects": objects,
    "an array of any lengths": of_any_length,
    "a compound": compound,
    "references": reference,
    "a named type": named_type,
    "a group": a_group,
    "nothing": nothing,
}
CLIMBERS = ("../../etc/passwd", "/etc/passwd", "..", "a\0b", "a/../../b", "C:evil")
DEEP = "[" * 100_000


def in_an_index(name: str, change: Change, says: str, code: int = 3) -> tuple[Hostile, ...]:
    """Before every command that reads an index, beside its parts and packed."""
    return (
        Hostile(f"index: {name}", CACHE, change, INDEX, code, says),
        Hostile(f"packed: {name}", PACKED, change, OF_PACKED, code, says),
    )


def in_a_part(
    name: str, put: Callable[[h5py.File, str, Path], None], says: str, *, array: str = "tokens", packed: str = ""
) -> tuple[Hostile, ...]:
    inside = f"packed/parts/{VIDEO}/{array}"
    commands = OF_PART if array == "tokens" else ("verify", "look", "pack", "merge")
    return (
        Hostile(f"part: {name} for {array}", PART, instead(array, put), commands, 3, says),
        # Reading goes by the table, which HDF5 has no part in; verify compares both.
        Hostile(
            f"packed part: {name} for {array}",
            PACKED,
            instead(inside, put),
            ("packed-verify", "unpack"),
            3,
            packed or says,
        ),
    )


HDF5 = (
    *(h for n, put in LINKS.items() for h in in_an_index(f"{n} for its rows", instead("rows", put), "a link elsewhere")),
    *(h for n, put in LINKS.items() for h in in_an_index(f"{n} on a path", instead("joint", put), "a link elsewhere")),
    *(h for n, put in LINKS.items()
      for h in in_an_index(f"{n} for annotations", instead("annotations/train", put), "a link elsewhere")),
    *(h for n, put in ELSEWHERE.items()
      for h in in_an_index(f"{n} for a matrix", instead("joint/projection", put), "not what costl extract writes")),
    *(h for n, put in BOMBS.items()
      for h in in_an_index(f"{n} for a matrix", instead("joint/projection", put), "joint/projection")),
    *(h for n, put in TYPES.items()
      for h in in_an_index(f"{n} for a matrix", instead("joint/projection", put), "joint/projection")),
    *in_an_index("a text of 2 GB", instead("rows", text_bomb), "rows claims 2147483647 bytes"),
    *in_an_index("a text of any length", instead("rows", object_text), "rows is object"),
    *in_an_index("numbers that are none", instead("joint/norm_weight", array([np.nan] * 8, "<f4")), "joint"),
    *in_an_index("infinite numbers", instead("joint/norm_bias", array([np.inf] * 8, "<f4")), "joint"),
    *in_an_index("format 999", changed(format_999), "cache format 999, this program reads format 1"),
    *in_an_index("a format of 60 000 digits", changed(format_texts), "'format' is not one int"),
    *in_an_index("a cycle", cycle("annotations/round"), "is not a dataset"),
    *(h for c in CLIMBERS for h in in_an_index(f"the id {c!r}", row(id=c, part=f"{c}.h5"), "not a safe video id")),
    *in_an_index("a part elsewhere", row(part="../../etc/passwd"), "names the part"),
    *in_an_index("words elsewhere", instead("words", text("../../etc/passwd")), "foreign or damaged"),
    *in_an_index("clips without end", row(clips=5 * 10**11, duration_s=1e12), "longer than any video"),
    *in_an_index("clips that are none", row(clips=-1), "clips"),
    *in_an_index("a duration of 400 digits", row(duration_s=10**400), "damaged"),
    *in_an_index("rows nested deeply", instead("rows", text(DEEP)), "nested too deeply"),
    *in_an_index("rows with a key twice", instead("rows", text('[{"id": "a", "id": "b"}]')), "given twice"),
    *in_an_index("NaN in its settings", instead("settings", text('{"train": {"ema": NaN}}')), "NaN is not a number"),
    *in_an_index("1e999 in its features", instead("features", text('{"fps": 1e999}')), "1e999 is larger"),
    *in_an_index("a number of 5000 digits", instead("fingerprint", text('{"a": ' + "9" * 5000 + "}")), "damaged"),
    *(h for n, put in LINKS.items() for h in in_a_part(n, put, "a link elsewhere")),
    *(h for n, put in ELSEWHERE.items() for h in in_a_part(n, put, "not what costl extract writes")),
    *(h for n, put in BOMBS.items() for h in in_a_part(n, put, "tokens")),
    *(h for n, put in TYPES.items()
      for h in in_a_part(n, put, "tokens", packed="differ" if put in (named_type, a_group, nothing) else "")),
    *in_a_part("falling times", array(np.arange(12.0)[::-1], "<f8"), "times that do not rise", array="times_s"),
    *in_a_part("times that are none", array([np.nan] * 12, "<f8"), "times that do not rise", array="times_s"),
    Hostile("part: a cycle", PART, cycle("round"), ("pack",), 3, "stands for what is there already"),
    Hostile("part: a link in its place", PART, linked, OF_PART, 3, "a link, expected a file"),
    Hostile("part: a pipe in its place", PART, piped, OF_PART, 3, "no such file"),
    Hostile("index: a pipe in its place", CACHE, piped, ("status", "verify", "inspect", "gc", "pack", "merge", "train", "add"), 3,
            "no such file"),
)  # fmt: skip


# Checkpoints


class _Bomb:
    """Unpickling it would leave a file."""

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {MARK}",))


def pickled(path: Path, _: Path) -> None:
    torch.save({"weights": _Bomb()}, path)


def pickled_plain(path: Path, _: Path) -> None:
    path.write_bytes(pickle.dumps(_Bomb()))


def pickled_old(path: Path, _: Path) -> None:
    torch.save({"weights": _Bomb()}, path, _use_new_zipfile_serialization=False)


def header(change: Callable[[dict], Any]) -> Change:
    """Another header before the same bytes."""

    def make(path: Path, _: Path) -> None:
        data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        found = json.loads(data[8 : 8 + length])
        new = change(found) or found
        text = (new if isinstance(new, str) else json.dumps(new)).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return make


def length(value: int) -> Change:
    def make(path: Path, _: Path) -> None:
        path.write_bytes(struct.pack("<Q", value) + path.read_bytes()[8:])

    return make


def first(**values: Any) -> Change:
    def change(found: dict) -> None:
        name = next(name for name in found if name != "__metadata__")
        found[name] |= values

    return header(change)


def overlapping(found: dict) -> None:
    one, other, *_ = (name for name in found if name != "__metadata__")
    found[one]["data_offsets"] = found[other]["data_offsets"]


def twice(found: dict) -> str:
    name = next(name for name in found if name != "__metadata__")
    return f"{{{json.dumps(name)}: {json.dumps(found[name])}, {json.dumps(found)[1:]}"


def resealed(change: Callable[[dict, dict], Any]) -> Change:
    """Other content with a checksum that is right."""

    def make(path: Path, _: Path) -> None:
        stored = load_file(path)
        content: dict = {"format": 1, "meta": {"epoch": 1}}
        text = change(content, stored)
        if text is None:
            text = json.dumps(content | {"sha256": _digest(content, stored)})
        save_file(stored, path, metadata={HEADER: text})

    return make


def put_meta(meta: Any) -> Change:
    return resealed(lambda content, _: content.__setitem__("meta", meta))


WEIGHTS = f"{RUN}/best.safetensors"
WIDE = "model: {width: 1000000, heads: 1}\ntemporal: {layers: 1000}\n"


def in_weights(name: str, change: Change, says: str, commands: tuple[str, ...] = OF_WEIGHTS) -> Hostile:
    return Hostile(f"checkpoint: {name}", WEIGHTS, change, commands, 3, says)


def unfinished(change: Change) -> Change:
    """In a run that can be resumed."""

    def make(path: Path, canary: Path) -> None:
        path.with_name("summary.json").unlink()
        change(path, canary)

    return make


CHECKPOINTS = (
    in_weights("a pickle in a zip", pickled, "a pickle, which could run anything when opened; it is not"),
    in_weights("a bare pickle", pickled_plain, "a pickle, which could run anything when opened; it is not"),
    in_weights("an old pickle of torch", pickled_old, "a pickle, which could run anything when opened; it is not"),
    in_weights("a header of 2^62 bytes", length(1 << 62), "damaged"),
    in_weights("a header of 90 MB", length(90_000_000), "damaged"),
    in_weights("a header that is no JSON", header(lambda _: "{" * 1000), "damaged"),
    in_weights("a header nested deeply", header(lambda _: "[" * 100_000), "damaged"),
    in_weights("an enormous shape", first(shape=[HUGE, HUGE, HUGE]), "damaged"),
    in_weights("a shape below zero", first(shape=[-1]), "damaged"),
    in_weights("offsets beyond the end", first(data_offsets=[0, HUGE]), "damaged"),
    in_weights("offsets that run back", first(data_offsets=[64, 0]), "damaged"),
    in_weights("offsets that overflow", first(data_offsets=[(1 << 64) - 1, 4]), "damaged"),
    in_weights("offsets that overlap", header(overlapping), "damaged"),
    in_weights("an unknown type", first(dtype="PYOBJECT"), "damaged"),
    in_weights("another type", first(dtype="F64"), "damaged"),
    in_weights("a name twice", header(twice), "damaged"),
    in_weights("meta nested deeply", resealed(lambda *_: '{"format": 1, "meta": ' + DEEP), "damaged"),
    in_weights("meta that names no tensor", put_meta({"average": {"~tensor": "~nowhere"}}), "damaged"),
    in_weights("meta with a list for a key", put_meta({"~items": [[[], 1]]}), "damaged"),
    in_weights("meta that is no mapping", put_meta(7), "damaged"),
    in_weights("no meta", resealed(lambda content, _: content.pop("meta") and None), "damaged"),
    in_weights("no weights", resealed(lambda _, stored: stored.clear()), "", ("evaluate", "report")),
    in_weights("weights of another shape", resealed(lambda _, stored: stored.update(
        {name: torch.zeros(3, 3) for name in stored})), "do not fit", ("evaluate", "report")),
    Hostile("checkpoint: counts that are none", f"{RUN}/last.safetensors",
            unfinished(put_meta({"counts": {"epoch": "x"}})), ("resume",), 3, "of another version"),
)  # fmt: skip


# Runs and settings


def written(content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda path, _: path.write_bytes(data)


def about(**values: Any) -> Change:
    return lambda path, _: path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
YAML = {
    "a tag that calls": (
        f'train: !!python/object/apply:os.system ["touch {MARK}"]\n',
        "could not determine a constructor",
    ),
    "a tag that makes": (f"train: !!python/object/new:os.system [touch {MARK}]\n", "could not determine a constructor"),
    "a tag that names": ("train: !!python/name:os.system\n", "could not determine a constructor"),
    "a billion laughs": (LAUGHS, "values when its aliases are written out"),
    "laughs in a setting": (f"{LAUGHS.replace('a0: ', 'train: {epochs: 1}' + chr(10) + 'a0: ')}", "aliases"),
    "an alias of itself": ("train: &a [*a]\n", "an alias (*name) inside what it stands for"),
    "deep nesting": ("train: " + "[" * 20_000, "nested too deeply"),
    "a number of 5000 digits": ("train: {epochs: " + "9" * 5000 + "}\n", "digits"),
    "a key twice": ("train: {epochs: 1, epochs: 2}\n", "given twice"),
    "two million characters": ("#" * (2 << 20), "characters, at most"),
    "no UTF-8": (b"train: \xff\xfe\n", "utf-8"),
}
SETTINGS = (
    *(Hostile(f"settings: {n}", "more.yaml", written(data), ("config", "variants"), 2, says)
      for n, (data, says) in YAML.items()),
    *(Hostile(f"costl.yaml: {n}", "videos/costl.yaml", written(data), ("folder",), 2, says)
      for n, (data, says) in YAML.items()),
    *(Hostile(f"config.yaml of a run: {n}", f"{RUN}/config.yaml", written(data), OF_WEIGHTS, 2, says)
      for n, (data, says) in YAML.items()),
    Hostile("config.yaml of a run: a model of a petabyte", f"{RUN}/config.yaml", written(WIDE),
            ("evaluate", "report", "predict"), 3, "a larger model"),
    Hostile("config.yaml of a run to resume: a model of a petabyte", f"{RUN}/config.yaml", unfinished(written(WIDE)),
            ("resume",), 3, "a larger model"),
    *(Hostile(f"run.json: {n}", f"{RUN}/run.json", change, (*OF_WEIGHTS, "resume"), 3, "run.json: damaged")
      for n, change in {
          "nested deeply": written(DEEP),
          "a list": written("[]"),
          "empty": written(""),
          "no UTF-8": written(b"\xff\xfe"),
          "a key twice": written('{"cache": "a", "cache": "b"}'),
          "1e999": written('{"cache": "a", "longest_clips": 1e999}'),
          "a cache that is a list": about(cache=[1]),
          "a fingerprint that is a text": about(fingerprint="abc"),
          "half a character": written(json.dumps({"cache": "\ud800"})),
      }.items()),
    Hostile("run.json: started at no time", "runs/a/run.json", about(started="tomorrow"), ("newest",), 2, "no trained run"),
)  # fmt: skip


# Rows


def rows(**values: Any) -> str:
    plain = {"qid": 1, "query": "a ball", "vid": VIDEO, "duration": 24.0, "relevant_windows": [[0, 4]]}
    return json.dumps(plain | values) + "\n"


LINES = {
    "NaN": (rows(duration=float("nan")), "NaN is not a number JSON knows"),
    "minus infinity": (rows(relevant_windows=[[float("-inf"), 2]]), "-Infinity is not a number JSON knows"),
    "1e999": ('{"qid": 1, "query": "a", "vid": "b", "duration": 1e999}\n', "1e999 is larger than any number"),
    "a number of 5000 digits": ('{"qid": 1, "query": "a", "vid": "b", "duration": ' + "9" * 5000 + "}\n", "digits"),
    "a number of 4000 digits": ('{"qid": 1, "query": "a", "vid": "b", "duration": ' + "9" * 4000 + "}\n", "duration"),
    "deep nesting": (DEEP + "\n", "nested too deeply"),
    "deep nesting inside": ('{"qid": 1, "more": ' + '{"a":' * 50_000 + "\n", "nested too deeply"),
    "half a character": (rows(query="a \ud800 ball"), "half a character"),
    "half a character in a name": (rows(vid="\udc80"), "half a character"),
    "a key twice": ('{"qid": 1, "qid": 2, "query": "a", "vid": "b", "duration": 2}\n', "'qid' is given twice"),
    "an enormous line": ('{"qid": [' + "1," * 3_000_000 + '1], "query": 7, "vid": "b", "duration": 2}\n', "1: "),
    "a list": ("[1, 2]\n", "expected an object"),
    "zeros": ("\0" * 1000, "not JSON"),
}


def answers(**values: Any) -> str:
    plain = {
        "qid": 1,
        "query": "a ball",
        "vid": VIDEO,
        "pred_relevant_windows": [[0, 4, 1.0]],
        "pred_saliency_scores": [0.0] * CLIPS,
    }
    return json.dumps(plain | values) + "\n"


ANSWERS = {
    "NaN": (answers(pred_saliency_scores=[float("nan")]), "NaN is not a number JSON knows"),
    "infinity": (answers(pred_relevant_windows=[[0, float("inf"), 1]]), "Infinity is not a number JSON knows"),
    "1e999": (answers().replace("1.0]", "1e999]"), "1e999 is larger than any number"),
    "a number of 5000 digits": (answers().replace("1.0]", "9" * 5000 + "]"), "digits"),
    "a number of 4000 digits": (answers().replace("1.0]", "9" * 4000 + "]"), "a finite number"),
    "a qid of 4000 digits": (answers().replace('"qid": 1', '"qid": ' + "9" * 4000), "at most 64 bits"),
    "deep nesting": (DEEP + "\n", "nested too deeply"),
    "half a character": (answers(query="a \ud800 ball"), "half a character"),
    "a key twice": (answers().replace("{", '{"qid": 2, ', 1), "'qid' is given twice"),
    "an enormous line": (answers(pred_relevant_windows=[[0] * 1_000_000]), "not 3 numbers long"),
    "a list": ("[1, 2]\n", "expected an object"),
}
ROWS = (
    *(Hostile(f"annotations: {n}", "more.jsonl", written(data), ("annotations", "add", "truth"), 2, says)
      for n, (data, says) in LINES.items() if n != "a list"),
    *(Hostile(f"predictions: {n}", "more.jsonl", written(data), ("predictions", "compare"), 2, says)
      for n, (data, says) in ANSWERS.items()),
    *(Hostile(f"annotations of {split} in a cache: {n}", CACHE, instead(f"annotations/{split}", text(data)), commands, 2, says)
      for split, commands in (("train", ("train",)), ("test", ("evaluate", "report")))
      for n, (data, says) in LINES.items() if n not in ("an enormous line", "zeros")),
    Hostile("annotations: a video of a petasecond", "more.jsonl", written(rows(duration=1e15)), ("truth",), 2, ""),
    Hostile("annotations: a clip without end", "more.jsonl",
            written(rows(relevant_clip_ids=[HUGE], saliency_scores=[[1, 2, 3]])), ("truth",), 2, ""),
)  # fmt: skip

ZOO = (*HDF5, *CHECKPOINTS, *SETTINGS, *ROWS)


SETTINGS_OF_HOME = {
    "model": {"width": 16, "heads": 2},
    "spatial": {"top_k": 2},
    "temporal": {"strides": [1, 2]},
    "train": {"epochs": 1, "warmup_steps": 1, "batch_size": 2},
}


def write_cache(path: Path) -> None:
    """A small cache of made-up features, with one query a split."""
    rng = np.random.default_rng(0)
    joint = Joint(
        norm_weight=rng.normal(size=CHANNELS).astype(np.float32),
        norm_bias=rng.normal(size=CHANNELS).astype(np.float32),
        norm_eps=1e-5,
        projection=rng.normal(size=(CHANNELS, EMBEDDING)).astype(np.float32),
        logit_scale=100.0,
    )
    annotations = {video.partition("_")[0]: rows(vid=video) for video in VIDEOS}
    contents = Contents({"model": "made up", "fps": 0.5}, 0.5, (2, 2), joint, annotations, SETTINGS_OF_HOME)
    word = Words(np.ones((2, TEXT), np.float16), np.ones(EMBEDDING, np.float32), texts=("a ", "ball "))
    with CacheWriter(path, contents, {"a ball": word}) as writer:
        writer.write_index()
        for video in VIDEOS:
            tokens = rng.normal(size=(CLIPS, 5, CHANNELS)).astype(np.float16)
            times_s = np.arange(CLIPS) * 2.0 + 1.0
            writer.store(video, tokens=tokens, times_s=times_s, duration_s=24.0, content_hash=f"hash of {video}")


def write_home(home: Path) -> None:
    """A home in which everything is as it should be: a cache, the same packed, a run, a folder of videos, their rows."""
    home.mkdir(parents=True)
    write_cache(home / CACHE)
    pack(home / CACHE, out=home / PACKED)
    train(home / CACHE, out=home / RUN, device="cpu")
    (home / "runs").mkdir()
    link_tree(home / RUN, home / "runs" / "a")
    (home / "videos").mkdir()
    for video in VIDEOS:
        clips.make_clip(home / "videos" / f"{video}.mp4", clips.steady(10))
        (home / "videos" / f"{video.partition('_')[0]}.jsonl").write_text(rows(vid=video), encoding="utf-8")
    (home / "videos" / "costl.yaml").write_text(f"extract: {{weights: {TINY_CLIP}}}\n", encoding="utf-8")
    (home / "more.jsonl").write_text(rows(), encoding="utf-8")
    (home / "predictions.jsonl").write_text(answers(), encoding="utf-8")
    (home / "more.yaml").write_text("train: {epochs: 1}\n", encoding="utf-8")


def write_canary(home: Path) -> None:
    """Beside the home a file that holds what links and virtual datasets lead to: whoever follows them finds good data."""
    with h5py.File(home.parent / CANARY, "w") as file:
        file.create_dataset("endless", data=np.zeros((8, 8), "<f4"), maxshape=(None, 8), chunks=(8, 8))
        things = file.create_group("things")
        with h5py.File(home / CACHE) as cache, h5py.File(home / PART) as part:
            for name in ("rows", "joint", "annotations/train"):
                cache.copy(name, things, name.rpartition("/")[2])
            part.copy("tokens", things)


def link_tree(source: Path, target: Path) -> None:
    """A copy whose files are the same on disk."""
    shutil.copytree(source, target, copy_function=os.link, symlinks=True)
