"""The demo's web server on 127.0.0.1, and its page about one video by Gradio, without telemetry and other hosts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from costl.ask.asker import load
from costl.ask.model_folder import ZERO_SHOT, model_or_zero_shot
from costl.demo.lazy_app import LazyApp
from costl.demo.library import LibrarySearch
from costl.demo.library_app import build_library_app
from costl.demo.library_page import problem_page
from costl.demo.page import result_html, script, style, title_html
from costl.demo.security import GRADIO_POLICY, HOST, protect
from costl.demo.served_files import file_response
from costl.demo.server import open_socket
from costl.demo.sessions import DemoSessions
from costl.pipeline.errors import UsageError
from costl.pipeline.videos import list_videos

_NO_GRADIO = "costl demo needs Gradio, which is not installed. Install it: pip install 'costl[demo]'."
# In the browser: counts the videos that are being opened, and passes a file on only once, when it is new.
_OPENING = """(name, file) => {
  const page = document.body.dataset, before = page.upload, path = file ? file.path : '';
  page.opening = Number(page.opening || 0) + 1;
  page.upload = path;
  return [name, path === before ? null : file];
}"""
_OPENED = "() => { document.body.dataset.opening -= 1; }"


def demo(
    model: Path | str | None = None,
    *,
    videos: Path | None = None,
    search_run: Path | str | None = None,
    weights: str | None = None,
    cache_dir: Path | None = None,
    device: str = "auto",
    port: int = 7860,
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves the demo of a model (see `costl.load`) until it is interrupted. Calls `on_ready` with its address.

    With `videos` its first page searches this folder, which is indexed meanwhile; `search_run` is the run that finds the
    moments again there (see `open_library`). Uploads go to a folder that is deleted at the end. Raises UsageError if Gradio
    is missing, if `videos` is not a folder of videos, or if the port is in use.
    """
    if find_spec("gradio") is None:
        raise UsageError(_NO_GRADIO)
    model = model_or_zero_shot(model)
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="costl-demo-") as uploads, ExitStack() as work:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        server: Any = None

        def has_ended() -> bool:
            return bool(server.should_exit)

        def build_video_page() -> Any:
            asker = load(model, weights=weights, cache_dir=cache_dir, device=device)
            sessions = DemoSessions(asker, folder=videos)
            sessions.has_ended = has_ended
            work.callback(sessions.close)
            return build_app(import_gradio(), sessions, has_library=videos is not None)

        if videos is None:
            app = build_video_page()
        else:
            list_videos(videos)  # refuses a folder without videos
            # The weights of a trained model need not be those of the index.
            library = LibrarySearch(
                videos, run=search_run, weights=weights if model == ZERO_SHOT else None, device=device
            )
            library.has_ended = has_ended
            app = build_library_app(library, LazyApp(build_video_page, problem_page=problem_page))
        server_socket = work.enter_context(open_socket(port))
        if videos is not None:
            work.callback(library.close)
            library.indexing.start()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        on_ready(f"http://{HOST}:{server_socket.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):  # the usual end
            server.run(sockets=[server_socket])


def import_gradio() -> Any:
    """Imports Gradio with its telemetry switched off. Raises UsageError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise UsageError(_NO_GRADIO) from error
    return gradio


def build_app(gradio: Any, sessions: DemoSessions, *, has_library: bool = False) -> Any:
    """The FastAPI app of the page about one video. It serves each chosen video under a key that cannot be guessed.

    `has_library`: whether the page has a link to the library page.
    """
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    protect(app, GRADIO_POLICY)

    @app.post("/ask")
    async def ask(asked: dict[str, str]) -> Any:
        return StreamingResponse(sessions.replies(asked["video"], asked["query"]), media_type="application/x-ndjson")

    @app.get("/videos/{key}")
    def video(key: str) -> Any:
        return file_response(sessions.video_file(key))

    return gradio.mount_gradio_app(
        app,
        _build_page(gradio, sessions, has_library=has_library),
        path="/",
        server_name=HOST,
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=_theme(gradio),
        css=style(),
    )


def _theme(gradio: Any) -> Any:
    # System fonts, because the default theme loads its fonts from Google.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    # The default colours of the button and of quiet texts have too little contrast.
    button, hover = "button_primary_background_fill", "button_primary_background_fill_hover"
    colors = {button: "#c2410c", f"{button}_dark": "#c2410c", hover: "#9a3412", f"{hover}_dark": "#9a3412"}
    for text in ("input_placeholder_color", "body_text_color_subdued"):
        colors |= {text: "#52606d", f"{text}_dark": "#a3adba"}
    return theme.set(**colors)


def _build_page(gradio: Any, sessions: DemoSessions, *, has_library: bool) -> Any:
    names = sessions.video_names()
    with gradio.Blocks(title="CoSTL", analytics_enabled=False) as page:
        gradio.HTML(title_html(has_library=has_library), elem_id="costl-title")
        with gradio.Row():
            choice = gradio.Dropdown(names, value=None, label="Video", elem_id="costl-choice", visible=bool(names))
            label = "or upload one" if names else "Upload a video"
            upload = gradio.File(label=label, file_types=["video"], type="filepath", elem_id="costl-upload", height=150)
        player = gradio.HTML("", elem_id="costl-player")
        with gradio.Row(equal_height=True):
            query = gradio.Textbox(
                label="What to look for",
                placeholder="a dog catches a ball",
                max_lines=1,
                max_length=500,
                scale=5,
                elem_id="costl-query",
            )
            ask = gradio.Button("Ask", variant="primary", scale=1, min_width=90, elem_id="costl-ask")
        gradio.HTML(result_html(), elem_id="costl-result", js_on_load=script())
        chosen = gradio.on(
            [choice.change, upload.change],
            sessions.choose_video,
            [choice, upload],
            player,
            js=_OPENING,
            show_progress="hidden",
            queue=False,
            trigger_mode="always_last",  # one after the other, the newest last
            api_visibility="private",
        )
        chosen.then(None, js=_OPENED)
        gradio.on([ask.click, query.submit], None, js="() => { document.dispatchEvent(new Event('costl-ask')); }")
    return page
