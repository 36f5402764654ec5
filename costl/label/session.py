"""What the labelling page asks for and sends, as plain values: videos, labels, edits, proposals, and what has changed."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from costl.data.annotations import RATED_CLIP_S
from costl.demo.pictures import frame_jpeg
from costl.label.export import label_studio_text
from costl.label.order import order_to_label
from costl.label.proposals import Proposals
from costl.label.proxies import Proxies
from costl.label.rows import Label, Qid, Row, as_number, with_answer
from costl.label.store import Edit, LabelStore
from costl.label.videos import LabelVideo, LabelVideos
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.annotations import qid_in
from costl.pipeline.grid import Grid

_PICTURE_HEIGHT = 360
_WAIT_S = 0.5  # between looks at whether the server is shutting down
_MOST_SENTENCES = 5000  # that the page completes


class LabelSession:
    """The state of the page. `token` is what the page must send with everything that changes something.

    `has_ended`: whether the server is shutting down, so that replies must end.
    """

    def __init__(self, store: LabelStore, videos: LabelVideos, proposals: Proposals, proxies: Proxies):
        self.has_ended: Callable[[], bool] = lambda: False
        self.token = secrets.token_urlsafe(24)
        self.videos = videos
        self.proposals = proposals
        self.proxies = proxies
        self._store = store
        self._id = secrets.token_urlsafe(8)

    def state(self) -> dict[str, Any]:
        """Everything that does not depend on the chosen video; the videos in the order in which to label them."""
        count = self._store.count  # before the labels are read: a change in between is sent twice rather than never
        labels = self._store.labels()
        of_video = Counter(label.video for label in labels)
        counts = {video.name: of_video[video.vid] for video in self.videos.all}
        known = {video.vid for video in self.videos.all}
        return {
            **self._signs(count),
            "token": self.token,
            "file": self._store.path.name,
            "elsewhere": sum(label.video not in known for label in labels),
            "videos": [self._listed(name, counts[name]) for name in order_to_label(list(counts), counts)],
            "sentences": _sentences(labels),
        }

    def changes(self, count: int, name: str) -> dict[str, Any]:
        """What has changed since the page knew `count`; with the labels of the video `name` if they have."""
        self._store.look_again()
        now = self._store.count
        changed = self._store.changed_since(count)
        reply = self._signs(now)
        if changed:
            labels = self._store.labels()
            of_video = Counter(label.video for label in labels)
            reply["counts"] = {video.name: of_video[video.vid] for video in self.videos.all if video.vid in changed}
            reply["sentences"] = _sentences(labels)
        video = self.videos.named(name)
        if video is not None:
            reply["proxy"] = self.proxies.status(video)
            if video.vid in changed:
                reply["labels"] = self.labels(video)["labels"]
        return reply

    def labels(self, video: LabelVideo) -> dict[str, Any]:
        """The labels of a video."""
        count = self._store.count
        return {"count": count, "labels": [shown_label(label) for label in self._store.labels() if label.video == video.vid]}

    def playback(self, video: LabelVideo) -> dict[str, Any]:
        """The clock and the length of a video, its number of rated clips, and its proxy. Raises VideoError."""
        playback = self.videos.playback(video)
        return {
            "start_s": playback.start_s,
            "duration_s": _floor_ms(playback.duration_s),
            "frame_s": playback.frame_s,
            "clips": Grid(1 / RATED_CLIP_S, _floor_ms(playback.duration_s)).clips,
            "proxy": self.proxies.status(video),
        }

    def edit(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Makes an edit of the page, and returns the label when it is on the disk.

        `sent` has the `video`, the `id` and the `version` of the label ("" for a new one), and its `answer`, None to remove
        it. Raises UsageError for values that are not possible, and as `LabelStore.edit` does.
        """
        video = self.videos.named(name := _text(sent, "video"))
        if video is None:
            raise UsageError(f"{name}: not among the videos of this page. Start costl label again.")
        if video.problem:
            raise UsageError(video.problem)
        qid = _qid(_text(sent, "id"))
        answer = sent.get("answer")
        row = None if answer is None else self._row(video, qid, answer)
        label = self._store.edit(Edit(qid, _text(sent, "version"), row))
        return {"count": self._store.count, "label": label and shown_label(label)}

    async def propose(self, name: str, sentence: str) -> dict[str, Any]:
        """The proposals for a sentence in a video. `again`: another window's search has taken its turn."""
        search = asyncio.wrap_future(self.proposals.find(name, " ".join(sentence.split())))
        while not search.done() and not self.has_ended():
            await asyncio.wait([search], timeout=_WAIT_S)
        if not search.done() or search.cancelled():
            return {"note": "", "spans": [], "curve": [], "again": search.cancelled()}
        proposed = search.result()
        spans = [{"start": hit.start_s, "end": hit.end_s, "score": hit.score} for hit in proposed.hits]
        return {"note": proposed.note, "spans": spans, "curve": list(proposed.curve)}

    def picture(self, video: LabelVideo, second: float) -> bytes | None:
        """The JPEG of the picture at a second of a video; None where there is none."""
        return frame_jpeg(video.path, second, height=_PICTURE_HEIGHT)

    def text(self) -> str:
        """All labels as JSONL."""
        return self._store.text()

    def label_studio(self) -> str:
        """All labels as JSON for Label Studio."""
        return label_studio_text(self._store.labels(), self.videos)

    def close(self) -> None:
        """Stops all work in the background."""
        self.proposals.close()
        self.proxies.close()

    def _signs(self, count: int) -> dict[str, Any]:
        return {
            "session": self._id,
            "count": count,
            "problem": self._store.problem,
            "notices": self._store.notices,
            "index": self.proposals.status(),
        }

    def _listed(self, name: str, count: int) -> dict[str, Any]:
        video = self.videos.named(name)
        assert video is not None
        shown = {"name": name, "key": video.key, "file": video.file, "folder": video.folder, "labels": count}
        return shown | ({"problem": video.problem} if video.problem else {})

    def _row(self, video: LabelVideo, qid: int | str | None, answer: Any) -> dict[str, Any]:
        """The row of a label with the answer of the page."""
        if not isinstance(answer, Mapping):
            raise UsageError("answer is not an object.")
        known = self._store.latest(qid)
        if known and known.video != video.vid:
            raise UsageError(f"label {qid} is about another video. Reload the page.")
        windows = _windows(answer.get("windows"))
        row: Row = known.row if known else {"qid": 0, "vid": video.vid, "duration": 0}
        if max((end for _, end in windows), default=0) > row["duration"] or not row["duration"]:
            row = {**row, "duration": _floor_ms(self.videos.playback(video).duration_s)}
        row = with_answer(
            row,
            query=_text(answer, "query"),
            windows=windows,
            grades=_grades(answer.get("grades")),
            absent=answer.get("absent") is True,
        )
        return {name: value for name, value in row.items() if name != "qid"}


def shown_label(label: Label) -> dict[str, Any]:
    """A label as the page needs it.

    `raters`: how many have graded it, -1 for windows of any length. The page shows the mean, and changes those of one.
    """
    query = label.query
    raters = len(query.saliency[0]) if query.saliency else 0
    means = {str(clip): round(sum(row) / len(row), 2) for clip, row in zip(query.clip_ids, query.saliency, strict=True)}
    return {
        "id": json.dumps(label.qid),
        "version": label.version,
        "query": query.query,
        "windows": [list(window) for window in query.windows],
        "grades": {} if query.rated_s else means,
        "raters": -1 if query.rated_s else raters,
        "absent": label.is_absent,
        "open": label.is_open,
    }


def _sentences(labels: list[Label]) -> list[str]:
    """The sentences, the most frequent first."""
    return [text for text, _ in Counter(str(label.row["query"]) for label in labels).most_common(_MOST_SENTENCES)]


def _floor_ms(seconds: float) -> float:
    """Seconds cut to milliseconds, so that nothing that is rounded lies after the end."""
    return as_number(int(seconds * 1000 + 1e-6) / 1000)


def _qid(identity: str) -> Qid | None:
    """The qid of an id of the page; None for a label that has none yet."""
    if not identity:
        return None
    with suppress(ValueError, RecursionError, UsageError):
        return qid_in({"qid": json.loads(identity)})
    raise UsageError(f"id is {identity[:80]!r}, expected that of a label.")


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r}, expected a text."[:200])
    return value


def _windows(value: Any) -> list[list[float]]:
    if not isinstance(value, list) or not all(isinstance(window, list) and len(window) == 2 for window in value):
        raise UsageError("windows is not a list of [start, end].")
    if not all(_is_number(second) for window in value for second in window):
        raise UsageError("windows holds a value that is not a number.")
    return value


def _grades(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(clip.isdecimal() and _is_number(grade) for clip, grade in value.items()):
        raise UsageError("grades is not an object of grades by the number of a clip.")
    return {int(clip): grade for clip, grade in value.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
