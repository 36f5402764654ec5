"""A demo that answers a query only when the test makes a file of its name: gated_demo.py GATES VIDEOS prints the address.

The work for a query that is stopped leaves the file NAME.stopped. The video "slow.mp4" is opened when the file slow.mp4 exists.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import uvicorn

from costl.ask.answer import Answer, Moment, Saliency
from costl.demo import app, server
from costl.demo.sessions import DemoSessions
from costl.pipeline.progress import Progress


class GatedAsker:
    def __init__(self, gates: Path):
        self.gates = gates

    def ask(self, video, query, *, progress):
        try:
            while not (self.gates / query).exists():
                progress(Progress("frames", 3, 12))
                time.sleep(0.02)
        except BaseException:
            (self.gates / f"{query}.stopped").touch()
            raise
        return [Answer(query, Path(video), 24.0, (Moment(2.0, 4.0, 0.5),), Saliency(2.0, tuple(range(12))))]

    def patch_attention(self, video, query, times_s):
        return []


class GatedSessions(DemoSessions):
    def choose_video(self, name, upload):
        while name == "slow.mp4" and not (self.asker.gates / name).exists():
            time.sleep(0.02)
        return super().choose_video(name, upload)


def main(gates: Path, videos: Path) -> None:
    gradio = app.import_gradio()
    os.environ["GRADIO_TEMP_DIR"] = str(gates / "uploads")
    sessions = GatedSessions(GatedAsker(gates), folder=videos)
    with server.open_socket(0) as server_socket:
        config = uvicorn.Config(app.build_app(gradio, sessions), log_level="warning", timeout_graceful_shutdown=1)
        print(f"http://127.0.0.1:{server_socket.getsockname()[1]}/", flush=True)
        uvicorn.Server(config).run(sockets=[server_socket])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
