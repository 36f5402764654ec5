"""An ASGI app that is built when somebody opens it: importing Gradio and loading a model take seconds."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

from costl.pipeline.errors import CostlError


class LazyApp:
    """Calls the FastAPI app that `build` returns, from the first request on. An error of `build` becomes a page with its text.

    `problem_page` is the HTML of an error message.
    """

    def __init__(self, build: Callable[[], Any], *, problem_page: Callable[[str], str]):
        self._build = build
        self._problem_page = problem_page
        self._app: asyncio.Future[Any] | None = None
        self._running: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request."""
        from fastapi.responses import HTMLResponse

        if self._app is None:
            self._app = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run(self._app))
        try:
            app = await asyncio.shield(self._app)
        except Exception as error:
            self._app = None  # the next request tries again
            app = HTMLResponse(self._problem_page(str(error)), status_code=500)
        await app(scope, receive, send)

    async def close(self) -> None:
        """Ends the app, if it was built."""
        self._closing.set()
        if self._running is not None:
            await self._running

    async def _run(self, ready: asyncio.Future[Any]) -> None:
        """Runs the app's own start and end in one task, as context managers with cancel scopes need it."""
        try:
            app = await asyncio.to_thread(self._build)
            async with app.router.lifespan_context(app):
                ready.set_result(app)
                await self._closing.wait()
        except Exception as error:
            if not isinstance(error, CostlError):
                traceback.print_exception(error)
            if not ready.done():
                ready.set_exception(error)
