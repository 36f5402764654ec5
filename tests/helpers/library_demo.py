"""The library page without a page about one video: library_demo.py GATES VIDEOS WEIGHTS prints its address.

An update that has something to do waits as long as the file GATES/slow exists, and reports INDEXING meanwhile. A query with
the word "absent" has no hits: all its moments are below the threshold. Any other has no threshold.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from costl.demo import indexed_folder, library, library_app, server
from costl.demo.lazy_app import LazyApp
from costl.pipeline.progress import Progress, Throughput
from costl.search.library import Library

INDEXING = Progress("videos", 1, 3, video="2026/first.mp4", speed=Throughput(3, 1.0, "CLIP", 0.0, left_s=75))


def main(gates: Path, videos: Path, weights: str) -> None:
    update, search = indexed_folder.update_library, Library.search_all

    def gated_update(folder, index, *, progress, **options):
        def report(event):
            progress(event)
            while event.stage == "load" and (gates / "slow").exists():
                time.sleep(0.02)
                progress(INDEXING)

        return update(folder, index, progress=report, workers=1, **options)

    def gated_search(self, queries, **options):
        results = search(self, queries, min_score=0.0, **options)
        return [replace(one, hits=(), below=one.hits) if "absent" in one.query else one for one in results]

    indexed_folder.update_library, Library.search_all = gated_update, gated_search
    state = library.LibrarySearch(videos, weights=weights, device="cpu")
    state.indexing.start()
    with server.open_socket(0) as server_socket:
        page = library_app.build_library_app(state, LazyApp(FastAPI, problem_page=str))
        config = uvicorn.Config(page, log_level="warning", timeout_graceful_shutdown=1)
        print(f"http://127.0.0.1:{server_socket.getsockname()[1]}/", flush=True)
        uvicorn.Server(config).run(sockets=[server_socket])
    state.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
