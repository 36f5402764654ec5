"""Replies of the demo that wait for work in a thread, until the server ends: a result, or lines of JSON until there is one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from typing import TypeVar

REPLY_EVERY_S = 0.5

T = TypeVar("T")


class Ending(Exception):
    """The server is shutting down, so that there is no answer."""


def json_line(**reply: object) -> str:
    """One reply, with a line break at the end."""
    return json.dumps(reply) + "\n"


async def until_done(
    work: asyncio.Future[dict[str, object]], *, waiting: Callable[[], Mapping[str, object]], has_ended: Callable[[], bool]
) -> AsyncIterator[str]:
    """Lines with `waiting()` about twice a second until `work` is done, then a line with its result.

    Ends early when the server `has_ended`.
    """
    while not work.done():
        if has_ended():
            return
        yield json_line(**waiting())
        await asyncio.wait([work], timeout=REPLY_EVERY_S)
    yield json_line(**work.result())


async def result_of(call: Callable[[], T], threads: Executor, *, has_ended: Callable[[], bool]) -> T:
    """What `call` returns in one of the `threads`. Raises Ending once the server `has_ended` or the threads are closed."""
    try:
        work = asyncio.wrap_future(threads.submit(call))
    except RuntimeError as error:  # they are closed
        raise Ending from error
    while not (work.done() or has_ended()):
        await asyncio.wait([work], timeout=REPLY_EVERY_S)
    if not work.done() or work.cancelled():
        work.cancel()
        raise Ending
    return work.result()
