"""How long a reproduction takes on this machine and how much disk it needs, from what is left to do and measured rates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from costl.config import Config
from costl.data.annotations import Query
from costl.metrics.paper_table import WITH_DOMAINS
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.pipeline.grid import Grid
from costl.training.inputs import fit_to_data


@dataclass(frozen=True)
class Rates:
    """What was measured on a few `videos`, at `fps` clips a second.

    Seconds and bytes of a clip and bytes of a sentence in the cache, the seconds of a query in an epoch of training
    (`train_s`) and in a prediction (`predict_s`), and the seconds and bytes of a training apart from its epochs.
    """

    videos: int
    fps: float
    clip_s: float
    clip_bytes: float
    sentence_bytes: float
    train_s: float
    predict_s: float
    run_s: float
    run_bytes: float


@dataclass(frozen=True)
class Work:
    """What is left to do: videos with their clips, sentences, trainings, and the queries that they train on and predict in
    all epochs."""

    videos: int
    clips: int
    sentences: int
    trainings: int
    trained: int
    predicted: int


@dataclass(frozen=True)
class Forecast:
    """The seconds and the bytes of the work that is left."""

    rates: Rates
    work: Work

    @property
    def features_s(self) -> float:
        """Seconds until the cache is complete. Sentences take none to speak of."""
        return self.work.clips * self.rates.clip_s

    @property
    def features_bytes(self) -> float:
        """Bytes of the features that are not in the cache yet."""
        return self.work.clips * self.rates.clip_bytes + self.work.sentences * self.rates.sentence_bytes

    @property
    def trainings_s(self) -> float:
        """Seconds of all trainings and evaluations, if none stops early."""
        per_query = self.work.trained * self.rates.train_s + self.work.predicted * self.rates.predict_s
        return per_query + self.work.trainings * self.rates.run_s

    @property
    def trainings_bytes(self) -> float:
        """Bytes of all run folders."""
        return self.work.trainings * self.rates.run_bytes

    @property
    def bytes(self) -> float:
        """Bytes of all of it."""
        return self.features_bytes + self.trainings_bytes

    def message(self, out: Path) -> str:
        """What is left takes so long and needs so much of the disk of `out`."""
        seconds = self.features_s + self.trainings_s
        return (
            f"About {duration(seconds)} and {size(self.bytes)} are left: {duration(self.features_s)} and "
            f"{size(self.features_bytes)} for the features of {self.work.videos:,} videos, at most "
            f"{duration(self.trainings_s)} and {size(self.trainings_bytes)} for {self.work.trainings} trainings (measured "
            f"here on {self.rates.videos} videos). {size(free_bytes(out))} are free at {out}."
        )

    def refuse_small_disk(self, out: Path, *, hint: str = "") -> None:
        """Raises UsageError if the disk of `out` has less space than is needed. `hint`: how the features take less."""
        free = free_bytes(out)
        if self.bytes > free:
            raise UsageError(
                f"{out}: {size(free)} are free, and {size(self.features_bytes)} are needed for the features of "
                f"{self.work.videos:,} videos and {size(self.trainings_bytes)} for {self.work.trainings} trainings. Free "
                f"space there, or choose another --out.{hint}"
            )


def work_left(
    splits: Mapping[str, Sequence[Query]],
    vids: Sequence[str],
    settings: Config,
    *,
    fps: float,
    seeds: int,
    cache: Path,
    runs: Path,
) -> Work:
    """What is not done yet of a reproduction with `seeds` trainings (for each domain), on the videos `vids`."""
    durations_s = {query.vid: query.duration_s for queries in splits.values() for query in queries}
    done = set(CacheReader(cache).video_ids) if cache.exists() else set[str]()
    left = [vid for vid in vids if vid not in done]
    sentences = {query.query for queries in splits.values() for query in queries}
    domains = {query.domain for query in splits["train"]} if settings.data.benchmark in WITH_DOMAINS else {""}
    models = 1 if settings.data.domain else len(domains)
    trainings = max(0, seeds * models - len(list(runs.rglob("summary.json"))))
    # Each domain is a share of the queries, and a model trains on its own domain.
    share = trainings / models
    counts = {name: len(queries) for name, queries in splits.items()}
    validated = counts.get(settings.train.select_on, 0)
    fitted = fit_to_data(settings, queries=counts["train"]).train
    epochs = fitted.epochs or 0
    pseudo_labels = fitted.pseudo_labels or 0 if any(query.windows for query in splits["train"]) else 0
    return Work(
        videos=len(left),
        clips=sum(Grid(fps, durations_s[vid]).clips for vid in left),
        sentences=0 if cache.exists() else len(sentences),
        trainings=trainings,
        trained=round(trainings * epochs * (counts["train"] / models + pseudo_labels)),
        predicted=round(share * ((epochs + 1) * validated + 2 * counts["test"])),
    )


def read_rates(path: Path) -> Rates | None:
    """The rates that an earlier call measured here; None if there are none."""
    try:
        return Rates(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_rates(path: Path, rates: Rates) -> None:
    """Keeps the rates for the next call."""
    publish(path, (json.dumps(asdict(rates), indent=2) + "\n").encode())


def free_bytes(folder: Path) -> int:
    """The free bytes of the disk of a folder."""
    return shutil.disk_usage(folder).free


def size(number: float) -> str:
    """Bytes as text."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds as text, in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
