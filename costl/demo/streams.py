"""Replies of the demo as lines of JSON: what goes on until some work is done, then its result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping

REPLY_EVERY_S = 0.5


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
