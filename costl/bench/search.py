"""Measures searches of a whole library: the scan of all clips, the first answer of a new process, and the memory of answers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from costl.ask.model_folder import ZERO_SHOT
from costl.pipeline.bench.measure import can_measure_memory, cost_of, in_new_process, measure, peak_anonymous_bytes
from costl.pipeline.bench.scan import CLIPS, FPS, MANY, bench_scan, cost_table, random_contents, write_library
from costl.pipeline.data_folder import ExtractSettings
from costl.pipeline.device import pick_device
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.library.encoder_record import search_fingerprint
from costl.pipeline.library.folder import VideoFile, index_folder, write_files
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import file_stamp
from costl.search.open_library import open_library

MODEL = "ViT-B-32"
_ROUNDS = 5  # of new processes
_REFERENCE = "import torch and load the text tower"
_FIRST_ANSWER = "first answer of costl search"
_LOAD = """
import sys, torch
from costl.pipeline.encode.text_encoder import TextEncoder
from costl.pipeline.encode.weights import find_source
TextEncoder(find_source(*sys.argv[1:3]), device=sys.argv[3])
"""


@dataclass(frozen=True)
class Library:
    """A folder of videos with its index, the weights of its encoder, the cache folder of a user of its own, and the device
    that computes the text tower."""

    videos: Path
    weights: Path
    user: Path
    device: str = "cpu"


def bench_search(
    *,
    hours: float = 100.0,
    repeats: int = 10,
    folder: Path = Path(),
    weights: Path | None = None,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> list[str]:
    """The tables of searching `hours` of videos of three minutes, random unit vectors in a library in `folder`.

    `weights` are a file of ViT-B-32 or the folder of an encoder, by default random ones of ViT-B-32. The text tower runs on
    `device`; the scan and the memory are always those of the CPU. Raises UsageError for less than one video or repeat, and
    for a device that this machine lacks.
    """
    videos = round(hours * 3600 * FPS / CLIPS)
    if videos < 1 or repeats < 1:
        raise UsageError(f"{hours:g} hours, {repeats} repeats: expected at least one video of three minutes, and one repeat.")
    chosen_device = str(pick_device(device))
    report_progress = progress or (lambda _: None)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        library = replace(make_library(Path(temporary), videos, weights, report_progress), device=chosen_device)
        title = f"a new process, {hours:g} hours, {videos} videos, {chosen_device}"
        answers = measure_answers(library, title, min(repeats, _ROUNDS), report_progress)
        scan = bench_scan(index_folder(library.videos), videos=videos, repeats=repeats, progress=report_progress)
    return [*scan, "", *answers]


def make_library(folder: Path, count: int, weights: Path | None, report_progress: ProgressCallback) -> Library:
    """A library of `count` empty files, as if they had been indexed."""
    library = Library(folder / "videos", weights or folder / f"{MODEL}-openai.safetensors", folder / "user")
    if weights is None:
        in_new_process(_write_random_weights, library.weights)
    encoder, width = in_new_process(_encoder, library.weights)
    fingerprint = search_fingerprint(encoder, ExtractSettings(tokens="cls"))
    contents = random_contents(fingerprint, {"model": MODEL, "weights": str(library.weights)}, width)
    library.videos.mkdir()
    index = index_folder(library.videos)
    files = {}
    for row in write_library(index, contents, count, report_progress):
        path = library.videos / f"{row.name}.mp4"
        path.touch()
        files[path.name] = VideoFile(file_stamp(path), row.name)
    write_files(index, files)
    return library


def measure_answers(library: Library, title: str, rounds: int, report_progress: ProgressCallback) -> list[str]:
    """The table of the first answer, and the memory of answers."""
    report_progress(Progress("answers", 0, 3))
    calibration = cost_of(partial(_search, library))  # loads the whole network, and compares the ordinary sentences
    report_progress(Progress("answers", 1, 3))
    works: Mapping[str, Callable[[], object]] = {
        _REFERENCE: partial(_run, library, "-c", _LOAD, MODEL, str(library.weights), library.device),
        "first answer of costl search": partial(_search, library),
    }
    lines = cost_table(title, measure(works, repeats=rounds), _REFERENCE)
    lines += ["", f"The very first search, which compares ordinary sentences with all clips: {calibration.wall_s:.0f} s."]
    report_progress(Progress("answers", 2, 3))
    if can_measure_memory():
        held = in_new_process(held_bytes, library)
        growth = [(in_new_process(answer_bytes, library, count) - held) / 1e6 for count in (1, MANY)]
        lines.append(
            f"Memory beyond the {held / 1e6:.0f} MB of a process with the text tower, without the mapped file: "
            f"{growth[0]:.0f} MB for one sentence, {growth[1]:.0f} MB for {MANY}."
        )
    report_progress(Progress("answers", 3, 3))
    return lines


def held_bytes(library: Library) -> float:
    """The memory, without mapped files, of a process that holds the text tower."""
    from costl.pipeline.encode.text_encoder import TextEncoder
    from costl.pipeline.encode.weights import find_source

    tower = TextEncoder(find_source(MODEL, str(library.weights)))
    return peak_anonymous_bytes(lambda: tower)


def answer_bytes(library: Library, sentences: int) -> float:
    """The most memory, without mapped files, of a process that opens the library and answers so many sentences at once."""
    os.environ.update(_environment(library))

    def answer() -> object:
        opened = open_library(library.videos, run=ZERO_SHOT, device="cpu")
        return opened, opened.search_all([f"a person opens door number {number}" for number in range(sentences)])

    return peak_anonymous_bytes(answer)


def _write_random_weights(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from costl.pipeline.encode.weights import Source, create_open_clip

    logging.disable(logging.WARNING)  # open_clip warns that the weights are random
    torch.manual_seed(0)
    save_file(create_open_clip(Source(MODEL, MODEL, path), load_weights=False).state_dict(), path)


def _encoder(weights: Path) -> tuple[dict[str, str], int]:
    """The fingerprint of the encoder with these weights, and the width of its joint space."""
    from costl.pipeline.encode.clip import load_encoder

    encoder = load_encoder(MODEL, str(weights), patches=False)
    return encoder.fingerprint(), encoder.joint.width


def _search(library: Library) -> None:
    options = ("--videos", str(library.videos), "--run", ZERO_SHOT, "--device", library.device)
    _run(library, "-m", "costl", "search", "a person opens a door", *options)


def _run(library: Library, *arguments: str) -> None:
    """Runs Python. Raises CostlError with what it has printed if it fails."""
    environment = os.environ | _environment(library)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise CostlError(f"The measurement failed: {(done.stderr.strip().splitlines() or ['no error output'])[-1]}")


def _environment(library: Library) -> dict[str, str]:
    """What places the cache folder of the user (see `feature_store.user_folder`) next to the library."""
    return dict.fromkeys(("HOME", "LOCALAPPDATA", "XDG_CACHE_HOME"), str(library.user))
