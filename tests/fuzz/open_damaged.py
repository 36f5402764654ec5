"""Opens damaged files, one after the other, in a process that may die of it: `open_damaged.py KIND FIRST COUNT FOLDER`.

The folder holds a whole cache, packed file and run. Prints, as JSON, how many inputs were refused, how many read as if whole,
and every error that was none of ours. FOLDER/at tells the seed in hand when the process dies.
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import h5py
import numpy as np
from damage import as_json, damaged, odd_json

from pipeline import hdf5
from pipeline.cache import CacheReader, known_words, parts_folder
from pipeline.errors import CostlError
from pipeline.inspecting import inspect_cache
from pipeline.packed import ENDS, TABLE
from pipeline.status import status_table
from pipeline.verify import verify

MORE_MEMORY = 512 << 20
LONGEST_S = 20
TEXTS = ("rows", "features", "fingerprint", "settings", "joint/scalars", "words", "annotations/train")
Read = Callable[[], object]


def reads(cache: Path) -> Iterator[Read]:
    """All that is ever read of a cache, a step at a time; each may refuse."""
    yield lambda: status_table(CacheReader(cache).rows, everything=True)
    yield lambda: inspect_cache(cache)
    yield lambda: verify(cache, threads=1)
    yield lambda: verify(cache, threads=1, quick=True)
    yield lambda: known_words(cache)
    try:
        reader = CacheReader(cache)
    except CostlError:
        return
    yield lambda: (reader.videos, reader.source, reader.digest, reader.splits)
    for split in reader.splits:
        yield lambda split=split: reader.annotations(split)
    for name in reader.video_ids:
        yield lambda name=name: reader.grid(name).centres_s()
        yield lambda name=name: reader.tokens(name).sum()
        yield lambda name=name: reader.tokens(name, clips=[0], patches=False).sum()
        yield lambda name=name: reader.times_s(name)
    yield lambda: [words.tokens.sum() for words in reader.all_words().values()]


def index_bytes(random: Random, folder: Path) -> Path:
    path = folder / "feats.h5"
    path.write_bytes(damaged(random, (folder / "whole" / "feats.h5").read_bytes(), _part(folder).read_bytes()))
    return path


def part_bytes(random: Random, folder: Path) -> Path:
    part = random.choice([_part(folder), *sorted((folder / "whole" / "feats.h5.parts" / "words").iterdir())])
    place = folder / part.relative_to(folder / "whole")
    place.write_bytes(damaged(random, part.read_bytes(), (folder / "whole" / "feats.h5").read_bytes()))
    return folder / "feats.h5"


def packed_bytes(random: Random, folder: Path) -> Path:
    path = folder / "packed.h5"
    path.write_bytes(damaged(random, (folder / "whole" / "packed.h5").read_bytes(), _part(folder).read_bytes()))
    return path


def index_texts(random: Random, folder: Path) -> Path:
    """A sound HDF5 file whose JSON says something else."""
    path = folder / "feats.h5"
    shutil.copy(folder / "whole" / "feats.h5", path)
    with h5py.File(path, "r+") as file:
        for name in random.sample(TEXTS, random.choice((1, 1, 2))):
            text = bytes(file[name][()]).decode()
            value = json.loads(text) if name not in ("words", "annotations/train") else text
            content = as_json(random, odd_json(random, value))
            del file[name]
            file[name] = np.array(content or b" ", dtype=f"S{max(1, len(content))}")
    return path


def packed_table(random: Random, folder: Path) -> Path:
    """A sound packed file whose table says something else."""
    path = folder / "packed.h5"
    shutil.copy(folder / "whole" / "packed.h5", path)
    with h5py.File(path, "r+") as file:
        lines = bytes(file[TABLE][()]).splitlines()
        number = random.randrange(len(lines))
        lines[number] = as_json(random, odd_json(random, json.loads(lines[number])))
        lines = [line + b"\n" for line in lines]
        del file[TABLE], file[ENDS]
        file[TABLE], file[ENDS] = np.frombuffer(b"".join(lines), np.uint8), np.cumsum([len(line) for line in lines])
    return path


def _part(folder: Path) -> Path:
    return folder / "whole" / "feats.h5.parts" / "v_b.h5"


CACHES = {
    "index": index_bytes,
    "part": part_bytes,
    "packed": packed_bytes,
    "index texts": index_texts,
    "packed table": packed_table,
}


def checkpoint_reads(folder: Path) -> Iterator[Read]:
    from costl.checkpoint import load_checkpoint

    yield lambda: load_checkpoint(folder, "best")


def checkpoint_bytes(random: Random, folder: Path) -> Path:
    content = (folder / "whole" / "best.safetensors").read_bytes()
    (folder / "best.safetensors").write_bytes(damaged(random, content, _part(folder).read_bytes()))
    return folder


def checkpoint_header(random: Random, folder: Path) -> Path:
    """A checkpoint with a header that says something else, half of them with the checksum that belongs to it."""
    content = (folder / "whole" / "best.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if random.random() < 0.5:
        header = odd_json(random, header)
    else:
        about = odd_json(random, json.loads(header["__metadata__"]["costl"]))
        if isinstance(about, dict):
            about |= {"sha256": _checksum(folder, about)}
        header["__metadata__"]["costl"] = as_json(random, about).decode(errors="replace")
    said = as_json(random, header)
    said += b" " * (-len(said) % 8)
    (folder / "best.safetensors").write_bytes(len(said).to_bytes(8, "little") + said + content[8 + length :])
    return folder


def _checksum(folder: Path, about: dict) -> str:
    from costl import checkpoint
    from safetensors.torch import load_file

    about = {key: value for key, value in about.items() if key != "sha256"}
    try:
        return checkpoint._digest(about, load_file(folder / "whole" / "best.safetensors"))
    except (ValueError, RecursionError):
        return hashlib.sha256().hexdigest()


CHECKPOINTS = {"checkpoint": checkpoint_bytes, "checkpoint header": checkpoint_header}


def main() -> None:
    kind, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    make, read = (CACHES[kind], reads) if kind in CACHES else (CHECKPOINTS[kind], checkpoint_reads)
    list(checkpoint_reads(folder)) if kind in CHECKPOINTS else None  # torch is loaded before memory is counted
    limit_memory()
    found, foreign = Counter(), {}
    for seed in range(first, first + count):
        (folder / "at").write_text(str(seed))
        signal.alarm(LONGEST_S)
        outcome = "whole"
        path = make(Random(seed), folder)
        for step in read(path):
            try:
                step()
            except CostlError:
                outcome = "refused"
            except Exception as error:
                outcome = "foreign"
                foreign.setdefault(f"{type(error).__name__}: {error}"[:200], (seed, traceback.format_exc()[-1500:]))
        found[outcome] += 1
        restore(kind, folder)
    signal.alarm(0)
    print(json.dumps({"counts": found, "foreign": foreign, "peak_mb": peak_mb()}))


def limit_memory() -> None:
    """A file that asks for more than its size has to fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def restore(kind: str, folder: Path) -> None:
    if kind == "part":
        shutil.copytree(folder / "whole" / "feats.h5.parts", folder / "feats.h5.parts", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
