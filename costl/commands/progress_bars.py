"""Runs a command and shows its progress: bars on a terminal, lines in a log, or JSON events."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from costl.commands.output import Result, print_event, print_messages, print_result
from costl.pipeline.progress import Progress, ProgressCallback

LINE_EVERY_S = 30.0
SPEED_BAR_FORMAT = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


def run_and_print(
    function: Callable[..., Result], *, quiet: bool, as_json: bool, table: str | None = None, **options: Any
) -> None:
    """Calls `function` with `options` and a progress callback, and prints its result."""
    with ProgressBars(silent=quiet) as progress:
        result = function(**options, progress=progress)
    print_result(result, as_json=as_json, table=table)


class ProgressBars:
    """Shows progress on standard error: on a terminal a bar for each stage, in a log a line for each stage.

    A long stage that measures its speed prints another line to the log every LINE_EVERY_S seconds. With `silent`, only
    messages are printed.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._bar: tqdm | None = None
        self._silent = silent
        self._next_line_s = 0.0

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Prints the message of `progress`, and updates the bar."""
        if progress.message:
            tqdm.write(progress.message, file=sys.stderr)
        if not self._silent:
            self._update(progress)

    def _update(self, progress: Progress) -> None:
        if self._bar is None or self._bar.desc != f"{progress.stage}: ":
            self._bar = self._new_bar(progress)
        self._bar.set_postfix_str(str(progress.speed or progress.detail), refresh=False)
        self._bar.update(progress.done - self._bar.n)
        if progress.speed and not progress.video:
            self._show_speed(self._bar, progress)

    def _new_bar(self, progress: Progress) -> tqdm:
        self.__exit__()
        if not sys.stderr.isatty():
            print_messages(f"{progress.stage} ...")
        bar = tqdm(
            total=progress.total or None,
            desc=progress.stage,
            disable=None,
            dynamic_ncols=True,
            bar_format=SPEED_BAR_FORMAT if progress.speed else None,
        )
        bar.desc = f"{progress.stage}: "
        self._next_line_s = time.monotonic() + LINE_EVERY_S
        return bar

    def _show_speed(self, bar: tqdm, progress: Progress) -> None:
        """Shows the speed also between two finished videos."""
        if not bar.disable:
            bar.refresh()
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + LINE_EVERY_S
            print_messages(f"{progress.stage}: {progress.done} of {progress.total}, {progress.speed}")


class ProgressEvents:
    """Prints the progress of an extraction as JSON lines to standard output, and forwards it to another callback.

    Prints `{"event": "video", "name", "status", "reason"}` for each finished video, `{"event": "note", "text"}` for each
    message, and at most once a second `{"event": "progress", "stage", "done", "total", "flow"}`.
    """

    def __init__(self, forward_to: ProgressCallback) -> None:
        self._forward_to = forward_to
        self._stage = ""
        self._next_s = 0.0

    def __call__(self, progress: Progress) -> None:
        """Prints an event for `progress`, unless the last progress event is less than a second old."""
        if progress.message:
            print_event("note", text=progress.message)
        elif progress.video:
            reason = "" if progress.status == "ok" else progress.detail
            print_event("video", name=progress.video, status=progress.status, reason=reason)
        elif progress.stage != self._stage or time.monotonic() >= self._next_s:
            self._stage = progress.stage
            self._next_s = time.monotonic() + 1
            flow = vars(progress.speed) if progress.speed else None
            print_event("progress", stage=progress.stage, done=progress.done, total=progress.total, flow=flow)
        self._forward_to(progress)
