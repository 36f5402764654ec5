"""Features of single videos, kept by content: made once, whatever a file is called and however often it is asked about.

FOLDER/<settings>/<content>.h5 and .h5.parts/    a cache of one video, and the words of what it was asked
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.words import known_words
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.clip import Clip, load_clip
from costl.pipeline.errors import CacheError, VideoError
from costl.pipeline.extract import encode_queries
from costl.pipeline.fingerprint import digest, explain_difference
from costl.pipeline.options import FIELDS, Effort, How, decoder_of, form_in
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.run.engine import extract_into
from costl.pipeline.videos import Video, content_hash

_WORDS_KEPT = 512  # queries a video; the oldest go first


def user_folder() -> Path:
    """Where a program may keep what it can make again, by the customs of the platform."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "costl" / "Cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/costl").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "costl"


class Kept:
    """Features made as `fingerprint` says, by the CLIP that `model` and `weights` name; threads may share it.

    CLIP is loaded when there is something to encode, and then refused unless it is the very one: `owner` is what the
    refusal says was trained on such features.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: Mapping[str, Any],
        model: str,
        weights: str,
        device: str,
        owner: str,
        workers: int | None = None,
    ):
        if not {"model", "weights", "preprocess", "precision", "fps"} <= fingerprint.keys():
            raise CacheError(
                f"{owner} was trained on features that were not made here ({', '.join(sorted(fingerprint))}), so no "
                "video can be turned into such features. Train on a cache of costl extract."
            )
        # Another release of open_clip is no other CLIP, as weights and preprocessing are compared by content; what it
        # makes is kept apart all the same.
        self._form = form_in(fingerprint)
        self.fingerprint = {**fingerprint, **asdict(self._form), "open_clip": version("open_clip_torch")}
        self.folder = folder / digest(self.fingerprint)[:16]
        self._model, self._weights, self._device, self._owner = model, weights, device, owner
        self._workers = workers
        self._clip: Clip | None = None
        self._lock = threading.Lock()
        self._hashes: dict[tuple[Any, ...], str] = {}

    def features(self, video: Path, queries: Sequence[str], *, progress: Tell | None = None) -> tuple[CacheReader, str]:
        """(cache, the video's name in it) with the video's features and the words of `queries`; made if need be.

        The name is that of the file when it was first asked about. Raises VideoError for a file that cannot be used,
        UsageError for a query without a word or weights that cannot be loaded, CacheError for those of another CLIP or
        a folder that cannot be written.
        """
        tell = progress or (lambda _: None)
        content = self._content(video)
        path = self.folder / f"{content}.h5"
        with self._lock:
            known = _words_of(path)
            if known is None or not set(queries) <= known:
                self._complete(path, Video(content, video), list(queries), tell)
            features = CacheReader(path)
        return features, features.video_ids[0]

    def _complete(self, path: Path, video: Video, queries: list[str], tell: Tell) -> None:
        clip = self._load(tell)
        contents = Contents(
            fingerprint=self.fingerprint,
            fps=float(self.fingerprint["fps"]),
            patch_grid=clip.patch_grid,
            joint=clip.joint,
            form=self._form,
        )
        # The words first: a query that cannot be used is refused before the video is decoded.
        earlier = [query for query in known_words(path) if query not in queries]
        words = encode_queries(clip, [*earlier[-_WORDS_KEPT:], *queries], path, tell)
        with CacheWriter(path, contents, words) as writer:
            if writer.keep(video.id, video.id) is None:
                effort = Effort(workers=self._workers)
                (row,) = extract_into(
                    writer, [video], clips=[clip], fps=contents.fps, how=self._how(clip), effort=effort, tell=tell
                )
                if not row.ok:
                    raise VideoError(row.reason, status=row.status)
                if row.content_hash != video.id:
                    raise VideoError(f"{video.path}: was changed while it was read. Ask again.", status="changed")
            writer.write_index()

    def _how(self, clip: Clip) -> How:
        """As the fingerprint says; one from before it said so is of frames at the centre, in their own size."""
        target = clip.preprocess.target if self.fingerprint.get("resize") == "decoder" else None
        decoder = decoder_of(str(self.fingerprint.get("decoder", "ffmpeg")))
        return How(decoder, str(self.fingerprint.get("sampling", "centre")), target)

    def _load(self, tell: Tell) -> Clip:
        if self._clip is None:
            tell(Progress("load", 0, 1, f"{self._model}, {self._weights}"))
            precision = str(self.fingerprint["precision"])
            layers, patches = self._form.layers, self._form.patches
            clip = load_clip(
                self._model, self._weights, device=self._device, precision=precision, layers=layers, patches=patches
            )
            here = clip.fingerprint() | asdict(self._form)
            here |= {name: self.fingerprint[name] for name in ("fps", *FIELDS) if name in self.fingerprint}
            differences = explain_difference(self.fingerprint, here, was="trained with", now="here is")
            if differences:
                raise CacheError(
                    f"{self._owner} was trained with another CLIP than {self._weights} ({'; '.join(differences)}). "
                    "Give the one it was trained with by --weights."
                )
            self._clip = clip
        return self._clip

    def _content(self, video: Path) -> str:
        """The hash of the file, read again only where it was touched."""
        try:
            about = video.stat()
        except OSError as error:
            raise VideoError(f"{video}: cannot be read ({error.strerror}). Check the name.") from error
        key = (video.resolve(), about.st_ino, about.st_size, about.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = content_hash(video)
        return self._hashes[key]


def _words_of(path: Path) -> set[str] | None:
    """The queries whose words are here beside a whole video; None where something has to be made.

    What is damaged is removed: it can be made again, and nobody has to be asked.
    """
    if not path.exists():
        return None
    try:
        features = CacheReader(path)
        for name in features.video_ids:
            features.times_s(name), features.tokens(name, clips=[0])
            return set(known_words(path))
    except CacheError:
        path.unlink(missing_ok=True)
    return None
