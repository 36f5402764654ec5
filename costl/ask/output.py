"""Several videos asked at once, and what becomes of the answers: a text, clips of the moments, a picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from costl.ask.answer import Answer, told
from costl.ask.asker import Asker
from costl.pipeline.errors import VideoError
from costl.pipeline.formats.files import publish
from costl.pipeline.preview.cut import cut
from costl.pipeline.progress import Progress, Tell
from costl.plots.answer import draw_answers
from costl.plots.text import clock

_LONGEST_NAME = 60  # bytes of a video's name in that of a clip, and of a query


@dataclass(frozen=True)
class Told:
    """The answers of all videos that could be asked, and why the `failed` could not, a sentence each."""

    answers: tuple[Answer, ...]
    failed: tuple[str, ...]


def ask_all(
    asker: Asker, videos: Sequence[Path], queries: Sequence[str], *, top: int, progress: Tell | None = None
) -> Told:
    """The `top` moments of every query in every video; a video that cannot be used costs itself and nothing else."""
    answers: list[Answer] = []
    failed: list[str] = []
    for number, video in enumerate(videos):
        if progress and len(videos) > 1:
            progress(Progress("ask", number, len(videos), video.name))
        try:
            answers += [answer.top(top) for answer in asker.ask(video, queries, progress=progress)]
        except VideoError as error:
            failed.append(str(error))
    return Told(tuple(answers), tuple(failed))


def write_told(
    answers: Sequence[Answer],
    *,
    form: str,
    out: Path | None,
    clips: Path | None,
    picture: Path | None,
    write: Callable[[str], None],
    progress: Tell | None = None,
) -> list[Path]:
    """Gives the text to `write`, or puts it into `out`; cuts clips and draws the picture where asked. The files made.

    Raises CostlError for what cannot be written.
    """
    made: list[Path] = []
    if out is not None:
        publish(out, told(answers, form).encode())
        made.append(out)
    else:
        write(told(answers, form))
    if clips is not None:
        made += cut_moments(answers, clips, progress=progress)
    if picture is not None and answers:
        publish(picture, draw_answers(answers))
        made.append(picture)
    return made


def cut_moments(answers: Sequence[Answer], folder: Path, *, progress: Tell | None = None) -> list[Path]:
    """Every moment of the answers as an MP4 of its own, named after video, query, rank and start."""
    places = list(_places(answers, folder))
    for number, (answer, rank, path) in enumerate(places):
        if progress:
            progress(Progress("cut", number, len(places), path.name))
        moment = answer.moments[rank]
        cut(answer.video, path, start_s=moment.start_s, end_s=moment.end_s)
    return [path for _, _, path in places]


def _places(answers: Sequence[Answer], folder: Path) -> Iterator[tuple[Answer, int, Path]]:
    used: set[str] = set()
    for answer in answers:
        for rank, moment in enumerate(answer.moments):
            at = clock(moment.start_s).replace(":", "-")
            stem = f"{_plain(answer.video.stem)}.{_plain(answer.query)}.{rank + 1}.{at}"
            name = next(n for n in _numbered(stem) if n.casefold() not in used)  # some disks do not tell A from a
            used.add(name.casefold())
            yield answer, rank, folder / f"{name}.mp4"


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}.{number}"
        number += 1


def _plain(text: str) -> str:
    """Letters and digits of any script, joined by hyphens: a name that is safe on every disk and in every shell."""
    joined = re.sub(r"[\W_]+", "-", text.casefold()).strip("-")
    return joined.encode()[:_LONGEST_NAME].decode(errors="ignore").strip("-") or "x"
