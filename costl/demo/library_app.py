"""The web server of the library page: plain FastAPI. The page about one video is mounted in it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from costl.demo.lazy_app import LazyApp
from costl.demo.library import LibrarySearch
from costl.demo.library_page import asset, page_html
from costl.demo.security import PLAIN_POLICY, protect
from costl.demo.served_files import file_response
from costl.demo.streams import Ending
from costl.pipeline.errors import CostlError

VIDEO_PAGE = "/video"


def build_library_app(search: LibrarySearch, video_page: LazyApp) -> Any:
    """The FastAPI app: the library page, and `video_page` under VIDEO_PAGE.

    Files are served under keys that cannot be guessed, and only those of the search's hits.
    """
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        await video_page.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    protect(app, PLAIN_POLICY)
    lines = "application/x-ndjson"

    @app.get("/")
    def page() -> Any:
        return HTMLResponse(page_html())

    @app.get("/manifest.json")
    @app.get("/favicon.ico")
    def nothing() -> Any:
        return JSONResponse({"name": "CoSTL"})  # Gradio's page asks for these two at the root

    @app.get("/library/page.css")
    def style() -> Any:
        return Response(asset("library.css"), media_type="text/css")

    @app.get("/library/page.js")
    def script() -> Any:
        return Response(asset("library.js"), media_type="text/javascript")

    @app.get("/library/index")
    async def index() -> Any:
        return StreamingResponse(search.index_replies(), media_type=lines)

    @app.post("/library/index/start")
    def start() -> None:
        search.indexing.start()

    @app.post("/library/index/stop")
    def stop() -> None:
        search.indexing.stop()

    @app.post("/library/search")
    async def find(asked: dict[str, str]) -> Any:
        return StreamingResponse(search.search_replies(asked), media_type=lines)

    @app.get("/library/videos/{key}")
    def video(key: str) -> Any:
        return file_response(search.video_file(key))

    @app.get("/library/starts/{key}")
    def start_of_video(key: str) -> Any:
        start_s = search.start_s(key)
        if start_s is None:
            raise HTTPException(404)
        return {"start_s": start_s}

    @app.get("/library/frames/{key}")
    async def frame(key: str, at: float) -> Any:
        try:
            jpeg = await search.frame(key, at)
        except Ending as ending:
            raise HTTPException(503) from ending
        if jpeg is None:
            raise HTTPException(404)
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    @app.post("/library/export")
    def export(asked: dict[str, Any]) -> Any:
        try:
            file = search.export(str(asked.get("search")), list(asked.get("ranks") or []), str(asked.get("format")))
        except CostlError as error:
            return JSONResponse({"problem": str(error)}, status_code=409)
        return {"name": file.name, "content": base64.b64encode(file.content).decode(), "notes": file.notes}

    app.mount(VIDEO_PAGE, video_page)
    return app
