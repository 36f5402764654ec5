"""How far a command is: bars on a terminal, lines in a log, JSON events for machines."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from costl.commands.output import print_event, say
from costl.pipeline.progress import Progress, Tell

LINE_EVERY_S = 30.0
FLOWING = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Bars:
    """Draws progress on standard error: a bar for each stage on a terminal; in a log a line for each, and for a long
    extraction another one now and then. `silent` shows no progress, only the sentences that the person should read.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._bar: tqdm | None = None
        self._silent, self._next_line_s = silent, 0.0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Shows the progress."""
        if progress.word:
            tqdm.write(progress.word, file=sys.stderr)
        if not self._silent:
            self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None or self._bar.desc != f"{progress.stage}: ":
            self.__exit__()
            if not sys.stderr.isatty():
                say(f"{progress.stage} ...")
            self._bar = tqdm(
                total=progress.total or None,
                desc=progress.stage,
                disable=None,
                dynamic_ncols=True,
                bar_format=FLOWING if progress.flow else None,
            )
            self._bar.desc = f"{progress.stage}: "
            self._next_line_s = time.monotonic() + LINE_EVERY_S
        self._bar.set_postfix_str(str(progress.flow or progress.detail), refresh=False)
        self._bar.update(progress.done - self._bar.n)
        if progress.flow and not progress.video:
            self._stay_alive(self._bar, progress)

    def _stay_alive(self, bar: tqdm, progress: Progress) -> None:
        """Shows how frames flow even while no video ends."""
        if not bar.disable:
            bar.refresh()
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + LINE_EVERY_S
            say(f"{progress.stage}: {progress.done} of {progress.total}, {progress.flow}")


class Events:
    """Prints the progress of an extraction as JSON lines on standard output, and hands it on.

    `{"event": "video", "name", "status", "reason"}` for each that has ended, `{"event": "note", "text"}`, and at most
    once a second `{"event": "progress", "stage", "done", "total", "flow"}`.
    """

    def __init__(self, then: Tell) -> None:
        self._then, self._stage, self._next_s = then, "", 0.0

    def __call__(self, progress: Progress) -> None:
        """Prints one, unless it comes too soon."""
        if progress.word:
            print_event("note", text=progress.word)
        elif progress.video:
            reason = "" if progress.status == "ok" else progress.detail
            print_event("video", name=progress.video, status=progress.status, reason=reason)
        elif progress.stage != self._stage or time.monotonic() >= self._next_s:
            self._stage, self._next_s = progress.stage, time.monotonic() + 1
            flow = vars(progress.flow) if progress.flow else None
            print_event("progress", stage=progress.stage, done=progress.done, total=progress.total, flow=flow)
        self._then(progress)
