"""Asks several videos, and writes the answers: as text, as a video file for each moment, and as a picture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from costl.ask.answer import Answer, Moment
from costl.ask.asker import Asker
from costl.ask.formats import format_answers, refuse_outputs
from costl.pipeline.errors import VideoError
from costl.pipeline.formats.files import publish, refuse_overwrite
from costl.pipeline.progress import Progress, ProgressCallback
from costl.plots.terminal_text import clock

_LONGEST_NAME = 60  # bytes of the video's name and of the query in the name of a cut file


def ask_videos(
    asker: Asker, videos: Sequence[Path], queries: Sequence[str], *, top: int, progress: ProgressCallback
) -> tuple[list[Answer], list[str]]:
    """The `top` moments of every query in every readable video, and an error message for every other video."""
    answers: list[Answer] = []
    failures: list[str] = []
    for number, video in enumerate(videos):
        if len(videos) > 1:
            progress(Progress("ask", number, len(videos), video.name))
        try:
            answers += [answer.top(top) for answer in asker.ask(video, queries, progress=progress)]
        except VideoError as error:
            failures.append(str(error))
    return answers, failures


def write_answers(
    answers: Sequence[Answer],
    *,
    output_format: str,
    out: Path | None,
    cut_folder: Path | None,
    picture: Path | None,
    print_text: Callable[[str], None],
    overwrite: bool = False,
    show_all: bool = False,
    progress: ProgressCallback = lambda _: None,
) -> list[Path]:
    """Writes the text to the file `out`, or passes it to `print_text`. Cuts every moment into `cut_folder` and draws
    `picture`, unless they are None. `show_all` adds the moments below the threshold to a table. Returns the files
    that it wrote. Raises UsageError for a file that is not an earlier output, unless `overwrite` (and always for a
    video), and CostlError if a file cannot be written.
    """
    videos = [answer.video for answer in answers]
    refuse_outputs(out, picture, inputs=videos, overwrite=overwrite)
    written: list[Path] = []
    text = format_answers(answers, output_format, show_all=show_all)
    if out is not None:
        publish(out, text.encode())
        written.append(out)
    else:
        print_text(text)
    if cut_folder is not None:
        written += cut_moments(answers, cut_folder, overwrite=overwrite, progress=progress)
    if picture is not None and answers:
        from costl.ask.picture import draw_answers

        publish(picture, draw_answers(answers))
        written.append(picture)
    return written


def cut_moments(
    answers: Sequence[Answer], folder: Path, *, overwrite: bool = False, progress: ProgressCallback
) -> list[Path]:
    """Writes every moment of the answers as an MP4 file, named after video, query, rank and start. Returns the files.

    Raises UsageError as `write_answers` does, before it writes anything.
    """
    from costl.pipeline.preview.cut import MADE_BY, cut

    files = list(_moment_files(answers, folder))
    videos = {answer.video for answer in answers}
    for _, _, path in files:
        refuse_overwrite(path, is_ours=lambda content: MADE_BY.encode() in content, inputs=videos, overwrite=overwrite)
    for number, (answer, moment, path) in enumerate(files):
        progress(Progress("cut", number, len(files), path.name))
        cut(answer.video, path, start_s=moment.start_s, end_s=moment.end_s)
    return [path for _, _, path in files]


def _moment_files(answers: Sequence[Answer], folder: Path) -> Iterator[tuple[Answer, Moment, Path]]:
    """(answer, moment, file) of every moment. No two names differ only in upper and lower case."""
    used: Counter[str] = Counter()
    for answer in answers:
        for rank, moment in enumerate(answer.moments, start=1):
            start = clock(moment.start_s).replace(":", "-")
            name = f"{_safe_name(answer.video.stem)}.{_safe_name(answer.query)}.{rank}.{start}"
            used[name] += 1
            if used[name] > 1:
                name += f".{used[name]}"
            yield answer, moment, folder / f"{name}.mp4"


def _safe_name(text: str) -> str:
    """Lower-case letters and digits of any script, joined by hyphens: safe on every disk and in every shell."""
    joined = re.sub(r"[\W_]+", "-", text.casefold()).strip("-")
    return joined.encode()[:_LONGEST_NAME].decode(errors="ignore").strip("-") or "x"
