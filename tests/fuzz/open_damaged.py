"""Opens damaged files one after the other in a process that may crash: `open_damaged.py KIND FIRST COUNT FOLDER`.

FOLDER/whole holds a cache, the same packed, and checkpoints (see `test_fuzz_files.py`). Prints as JSON how many files
were refused and how many were read, every error other than CostlError with its seed and traceback, and by how many MB
the process grew. FOLDER/seed holds the current seed, for when the process crashes.
"""

from __future__ import annotations

import copy
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
from typing import Any

import h5py
import numpy as np
from damage import as_json, damaged, odd_json

from costl.pipeline.cache.inspect import Status, inspect_cache
from costl.pipeline.cache.pack_table import ENDS, TABLE
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.words import stored_words
from costl.pipeline.errors import CacheError, CostlError

MORE_MEMORY = 512 << 20
LONGEST_S = 20
TEXTS = ("rows", "features", "fingerprint", "settings", "joint/scalars", "words", "annotations/train")
Read = Callable[[], object]


def cache_reads(cache: Path) -> Iterator[Read]:
    """Everything that is ever read from a cache, step by step; each step may refuse the file."""
    yield lambda: Status(CacheReader(cache).rows, everything=True).lines()
    yield lambda: inspect_cache(cache)
    yield lambda: _verify(cache, quick=False)
    yield lambda: _verify(cache, quick=True)
    yield lambda: stored_words(cache)
    yield lambda: CacheReader(cache)
    try:
        reader = CacheReader(cache)
    except Exception:  # reported by the step before
        return
    yield lambda: (reader.videos, reader.source, reader.digest, reader.splits)
    for split in reader.splits:
        yield lambda split=split: reader.annotations(split)
    for name in reader.video_ids:
        yield lambda name=name: reader.grid(name).centres_s()
        yield lambda name=name: reader.tokens(name).sum()
        yield lambda name=name: reader.tokens(name, clips=[0], patches=False).sum()
        yield lambda name=name: reader.times_s(name)
    yield lambda: [words.tokens.sum() for words in reader.word_table().values()]


def _verify(cache: Path, *, quick: bool) -> None:
    report = verify(cache, threads=1, quick=quick)
    if report.damaged:
        raise CacheError(str(report.damaged[0]))


def index_bytes(random: Random, folder: Path) -> Path:
    path = folder / "feats.h5"
    path.write_bytes(damaged(random, (folder / "whole" / "feats.h5").read_bytes(), _part(folder).read_bytes()))
    return path


def part_bytes(random: Random, folder: Path) -> Path:
    part = random.choice([_part(folder), *sorted((folder / "whole" / "feats.h5.parts" / "words").iterdir())])
    for whole in (folder / "whole" / "feats.h5.parts").rglob("*.h5"):  # undoes the damage of the seed before
        shutil.copy(whole, folder / whole.relative_to(folder / "whole"))
    target = folder / part.relative_to(folder / "whole")
    target.write_bytes(damaged(random, part.read_bytes(), (folder / "whole" / "feats.h5").read_bytes()))
    return folder / "feats.h5"


def packed_bytes(random: Random, folder: Path) -> Path:
    path = folder / "packed.h5"
    path.write_bytes(damaged(random, (folder / "whole" / "packed.h5").read_bytes(), _part(folder).read_bytes()))
    return path


def index_texts(random: Random, folder: Path) -> Path:
    """A valid HDF5 file in which some JSON is changed."""
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
    """A valid packed file in which a line of the table is changed."""
    path = folder / "packed.h5"
    shutil.copy(folder / "whole" / "packed.h5", path)
    with h5py.File(path, "r+") as file:
        lines = bytes(file[TABLE][()]).splitlines()
        number = random.randrange(len(lines))
        lines[number] = as_json(random, odd_json(random, json.loads(lines[number])))
        lines = [line + b"\n" for line in lines]
        del file[TABLE], file[ENDS]
        file[TABLE] = np.frombuffer(b"".join(lines), np.uint8)
        file[ENDS] = np.cumsum([len(line) for line in lines])
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
    """Everything that is read from a checkpoint. Loads torch, which the caches do not need."""
    from costl.training.checkpoint import load_checkpoint
    from costl.training.state import load_state

    yield lambda: load_checkpoint(folder, "last")
    yield lambda: load_state(small_state(), folder)


def small_state() -> Any:
    """The state of a very small training, with everything that `last` stores."""
    import torch

    from costl.training.precision import make_scaler
    from costl.training.state import TrainingState

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    cpu = torch.device("cpu")
    shuffle = torch.Generator().manual_seed(0)
    scaler = make_scaler(cpu, torch.float32)
    return TrainingState(model, copy.deepcopy(model), optimizer, shuffle, torch.float32, scaler)


def checkpoint_bytes(random: Random, folder: Path) -> Path:
    content = (folder / "whole" / "last.safetensors").read_bytes()
    (folder / "last.safetensors").write_bytes(damaged(random, content, _part(folder).read_bytes()))
    return folder


def checkpoint_header(random: Random, folder: Path) -> Path:
    """A checkpoint with a changed header; half of them have the matching checksum."""
    content = (folder / "whole" / "last.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if random.random() < 0.5:
        header = odd_json(random, header)
    else:
        metadata = odd_json(random, json.loads(header["__metadata__"]["costl"]))
        if isinstance(metadata, dict):
            metadata |= {"sha256": _checksum(folder, metadata)}
        header["__metadata__"]["costl"] = as_json(random, metadata).decode(errors="replace")
    encoded = as_json(random, header)
    encoded += b" " * (-len(encoded) % 8)
    (folder / "last.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])
    return folder


def _checksum(folder: Path, metadata: dict) -> str:
    from safetensors.torch import load_file

    from costl.training import checkpoint

    metadata = {key: value for key, value in metadata.items() if key != "sha256"}
    try:
        return checkpoint._digest(metadata, load_file(folder / "whole" / "last.safetensors"))
    except (ValueError, RecursionError):
        return hashlib.sha256().hexdigest()


CHECKPOINTS = {"checkpoint": checkpoint_bytes, "checkpoint header": checkpoint_header}


def main() -> None:
    kind, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    make, read = (CACHES[kind], cache_reads) if kind in CACHES else (CHECKPOINTS[kind], checkpoint_reads)
    restore(folder)
    for step in read(folder / "feats.h5" if kind in CACHES else folder):  # reads the whole files, which loads libraries
        step()
    before_mb = limit_memory()
    outcomes = Counter[str]()
    foreign: dict[str, tuple[int, str]] = {}
    for seed in range(first, first + count):
        (folder / "seed").write_text(str(seed))
        signal.alarm(LONGEST_S)
        outcomes[outcome(list(read(make(Random(seed), folder))), seed, foreign)] += 1
    signal.alarm(0)
    print(json.dumps({"counts": outcomes, "foreign": foreign, "grown_mb": peak_mb() - before_mb}))


def outcome(steps: list[Read], seed: int, foreign: dict[str, tuple[int, str]]) -> str:
    """The outcome for one file: `whole` if no step refused it. Errors other than CostlError are added to `foreign`."""
    kinds = set()
    for step in steps:
        try:
            step()
            kinds.add("whole")
        except CostlError:
            kinds.add("refused")
        except Exception as error:
            kinds.add("foreign")
            trace = traceback.format_exc().splitlines()[-6:]
            foreign.setdefault(f"{type(error).__name__}: {error}"[:200], (seed, "\n".join(trace)))
    return next(kind for kind in ("foreign", "refused", "whole") if kind in kinds)


def limit_memory() -> float:
    """Limits the memory, so that a file that claims too much makes its reader fail; -> the peak so far, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return peak_mb()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def restore(folder: Path) -> None:
    """Restores all files."""
    shutil.copytree(folder / "whole", folder, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
