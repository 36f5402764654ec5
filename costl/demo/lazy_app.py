"""An ASGI app that is built when somebody opens it: importing Gradio and loading a model take seconds."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from costl.pipeline.errors import CostlError


class LazyApp:
    """Calls the FastAPI app that `build` returns, from the first request on. An error of `build` becomes a page with its text.

    `problem_page` is the HTML of an error message.
    """

    def __init__(self, build: Callable[[], Any], *, problem_page: Callable[[str], str]):
        self._build = build
        self._problem_page = problem_page
        self._app: asyncio.Task[Any] | None = None
        self._lifespan = AsyncExitStack()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request."""
        from fastapi.responses import HTMLResponse

        if self._app is None:
            self._app = asyncio.create_task(self._start())
        try:
            app = await asyncio.shield(self._app)
        except Exception as error:
            self._app = None  # the next request tries again
            if not isinstance(error, CostlError):
                traceback.print_exception(error)
            app = HTMLResponse(self._problem_page(str(error)), status_code=500)
        await app(scope, receive, send)

    async def _start(self) -> Any:
        app = await asyncio.to_thread(self._build)
        await self._lifespan.enter_async_context(app.router.lifespan_context(app))
        return app
