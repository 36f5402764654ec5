"""Miniatures of the five benchmarks: a few rows in the layout of the official files, and videos or features for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
import numpy as np

from costl.benchmarks.validation_split import hash_of_video

SECONDS = 12
RATERS = 20
WIDTH = 12  # channels of the features
FILES = {
    "qvhighlights": ("highlight_train_release.jsonl", "highlight_val_release.jsonl", "highlight_test_with_gt.jsonl"),
    "charades": ("charades_sta_train_tvr_format.jsonl", "", "charades_sta_test_tvr_format.jsonl"),
    "tacos": ("train.jsonl", "val.jsonl", "test.jsonl"),
    "tvsum": ("tvsum_train.jsonl", "", "tvsum_val.jsonl"),
    "youtube-highlights": ("youtube_train.jsonl", "", "youtube_valid.jsonl"),
}
DOMAINS = {"tvsum": ("BK", "VT"), "youtube-highlights": ("dog", "surfing")}
BY_DOMAIN = tuple(DOMAINS)


@dataclass(frozen=True)
class Miniature:
    """The folder of the official files of `benchmark`, and its rows by file."""

    benchmark: str
    annotations: Path
    rows: dict[str, list[dict]]

    @property
    def test_rows(self) -> list[dict]:
        return self.rows[FILES[self.benchmark][2]]

    @property
    def every_row(self) -> list[dict]:
        return [row for rows in self.rows.values() for row in rows]

    def render(self, folder: Path, *, leave_out: Iterable[str] = ()) -> Path:
        """A video for each row but those left out."""
        folder.mkdir()
        for vid in {row["vid"] for row in self.every_row} - set(leave_out):
            render(folder / f"{vid}.mp4", SECONDS)
        return folder

    def publish(self, folder: Path, *, fps: float) -> tuple[Path, Path]:
        """(folder of the features of every video, folder of those of every sentence), random."""
        frames, text = folder / "frames", folder / "text"
        frames.mkdir(parents=True)
        text.mkdir()
        rng = np.random.default_rng(0)
        for row in self.every_row:
            np.savez(frames / f"{row['vid']}.npz", features=rng.normal(size=(round(SECONDS * fps), WIDTH)).astype("f4"))
            np.savez(text / f"qid{row['qid']}.npz", last_hidden_state=rng.normal(size=(4, WIDTH)).astype("f4"))
        return frames, text


def write_miniature(benchmark: str, folder: Path) -> Miniature:
    """Three training videos, and one for each other split; of benchmarks with domains as many in each of two domains."""
    folder.mkdir(parents=True)
    qids = count()
    rows: dict[str, list[dict]] = {}
    train, val, test = FILES[benchmark]
    for domain in DOMAINS.get(benchmark, ("",)):
        names = _names(benchmark, domain)
        for file, vids in ((train, [next(names) for _ in range(3)]), (val, [next(names)]), (test, [next(names)])):
            # Without a file of its own, validation is the training videos that are held out by their names.
            rows.setdefault(file or train, []).extend(_row(benchmark, vid, next(qids), domain) for vid in vids)
    for file, content in rows.items():
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return Miniature(benchmark, folder, rows)


def _names(benchmark: str, domain: str) -> Iterator[str]:
    """Names of videos, of which `costl prepare` holds out the fourth where it holds out a tenth."""
    held_out = [False, False, False, benchmark in ("charades", "youtube-highlights"), False]
    numbers = count(1)
    for wanted in held_out:
        names = (f"s{number}-d{number}{domain}" for number in numbers)
        yield next(name for name in names if (hash_of_video(name, 0) < 0.1 * 2**64) == wanted)


def _row(benchmark: str, vid: str, qid: int, domain: str) -> dict:
    colour = ("red", "blue", "green")[qid % 3]
    row = {"qid": qid, "query": f"the {colour} square number {qid}", "vid": vid, "duration": SECONDS}
    clips = SECONDS // 2
    if benchmark == "tvsum":
        label = [[float(1 + (clip + rater + qid) % 5) for rater in range(RATERS)] for clip in range(clips)]
        return row | {"qid": vid, "duration": clips, "label": label, "domain": domain}
    if benchmark == "youtube-highlights":
        windows = [[50 * i, 50 * i + 100] for i in range(6)]
        match = [(i + qid) % 3 - 1 for i in range(6)]
        return row | {"qid": vid, "domain": domain, "fps": 30.0, "frames": 30 * SECONDS, "clip": windows, "match": match}
    row["relevant_windows"] = [[2 * (qid % 3), 2 * (qid % 3) + 4]]
    if benchmark == "qvhighlights":
        row |= {"relevant_clip_ids": [qid % 3, qid % 3 + 1], "saliency_scores": [[4, 3, 2], [4, 4, 3]]}
    return row


def render(path: Path, seconds: float, *, fps: int = 2, side: int = 64) -> None:
    """A video of slowly changing colours."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "threads": "1"})
        stream.width = stream.height = side
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, fps)
        for picture in _pictures(round(seconds * fps), side, seed=len(path.name)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _pictures(number: int, side: int, *, seed: int) -> Iterator[np.ndarray]:
    corners = np.random.default_rng(seed).integers(0, 255, (8, 2, 2, 3))
    for index in range(number):
        yield np.repeat(np.repeat(corners[index * 8 // number], side // 2, 0), side // 2, 1).astype(np.uint8)
