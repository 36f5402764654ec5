"""The library page without a browser: searches, filters, served files, exports, the index, and the page built on demand."""

from __future__ import annotations

import asyncio
import html
import io
import json
import shutil
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import frame_times, make_video
from PIL import Image

from costl.config import Config
from costl.demo.indexing import Indexing
from costl.demo.lazy_app import LazyApp
from costl.demo.library import LibrarySearch
from costl.demo.library_app import build_library_app
from costl.demo.library_page import Card, problem_page, results_html
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.progress import Progress, Throughput
from costl.search.hits import Hit, SearchResult
from costl.training.run_folder import create_run

NAMES = ("a.mp4", "2026/b.mp4", "2026/x < y/c.mp4")


@pytest.fixture(scope="module")
def indexed(world, tmp_path_factory) -> Iterator[LibrarySearch]:
    """An indexed folder: three videos in nested folders, and a file that is none."""
    home = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setattr("costl.search.library.ZERO_SHOT_THRESHOLD", 0.0)
        for fps, width, name in zip((50, 25, 25), (64, 64, 96), NAMES, strict=True):
            (home / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
            make_video(home / "videos" / name, frame_times(6 * fps, fps=fps), size=(48, width))
        (home / "videos" / "broken.mp4").write_text("not a video")
        search = LibrarySearch(home / "videos", weights=str(world.videos / "clip"), device="cpu")
        search.indexing.start()
        assert replies(search.index_replies())[-1]["state"] == "ready", search.indexing.error
        yield search
        search.close()


def replies(lines) -> list[dict]:
    """Everything that a stream of JSON lines sends."""

    async def read() -> list[dict]:
        return [json.loads(line) async for line in lines]

    return asyncio.run(read())


def find(search: LibrarySearch, **asked: str) -> dict:
    return replies(search.search_replies({"query": "a red ring"} | asked))[-1]


def key_of(search: LibrarySearch, name: str) -> str:
    find(search)
    return next(key for key, path in search._files.paths.items() if path == search.folder / name)


def last_search(search: LibrarySearch) -> str:
    return next(reversed(search._results))


def test_the_index_lists_what_can_be_searched(indexed):
    (summary,) = replies(indexed.index_replies())
    assert (summary["state"], summary["videos"], summary["unfinished"]) == ("ready", 3, 0)
    assert summary["hours"] == pytest.approx(18 / 3600, rel=0.05)
    assert summary["folders"] == ["2026/", "2026/x < y/"]
    ((name, reason),) = summary["failed"]
    assert name == "broken.mp4" and "not a video" in reason


def test_a_search_shows_its_moments(indexed):
    reply = find(indexed)
    result = indexed._results[last_search(indexed)]
    assert {hit.name for hit in result.hits} == set(NAMES)
    assert reply["html"].count('<li class="card') == len(result.hits) + len(result.below)
    assert reply["summary"] == f"{len(result.hits)} moments in 3 of 3 videos"
    assert "x &lt; y/" in reply["html"] and str(indexed.folder) not in reply["html"]


def test_the_page_says_above_the_moments_what_answered(indexed, world, tmp_path, monkeypatch):
    assert "Answered by zero-shot ViT-B-32, clip" in find(indexed)["html"].split("<li")[0]
    create_run(tmp_path / "new", Config(), CacheReader(world.cache))
    monkeypatch.setattr("costl.search.run_choice.RUNS", tmp_path)
    again = LibrarySearch(indexed.folder, device="cpu")
    shown = find(again)["html"].split("<li")[0]
    again.close()
    assert f"clip · {tmp_path / 'new'} is not used: its training has not finished.</p>" in shown


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"query": "?!"}, "no letter or digit in it"),
        ({"query": " "}, "no letter or digit in it"),
        ({"after": "May"}, "after is 'May', expected a date"),
        ({"before": "2026-02-30"}, "before is '2026-02-30', expected a date"),
        ({"longer": "x"}, "longer than is 'x', expected seconds"),
        ({"longer": "-1"}, "expected seconds, 0 or more"),
        ({"longer": "nan"}, "expected seconds, 0 or more"),
        ({"within": "gone/"}, "none of 3 videos passes the filters"),
    ],
)
def test_what_cannot_be_searched_is_a_message(indexed, asked, message):
    reply = find(indexed, **asked)
    assert 'class="problem"' in reply["html"] and message in html.unescape(reply["html"]) and not reply["summary"]


@pytest.mark.parametrize(
    ("asked", "names"),
    [({"within": "2026/"}, {"2026/b.mp4", "2026/x < y/c.mp4"}), ({"within": "a*"}, {"a.mp4"}), ({"before": "2000-01-01"}, None)],
)
def test_filters_choose_the_videos(indexed, asked, names):
    reply = find(indexed, **asked)
    if names is None:
        assert "passes the filters" in reply["html"]
    else:
        assert {hit.name for hit in indexed._results[last_search(indexed)].hits} == names


def test_more_moments_are_offered_while_there_may_be_some(indexed):
    assert 'id="more"' in find(indexed, top="1")["html"]
    assert 'id="more"' not in find(indexed, top="500")["html"]


def test_only_files_of_hits_are_served(indexed):
    key = key_of(indexed, "a.mp4")
    assert indexed.video_file(key) == indexed.folder / "a.mp4"
    for other in ("", key[:-1], "a.mp4", "../a.mp4", "broken.mp4"):
        assert indexed.video_file(other) is None and indexed.start_s(other) is None
        assert asyncio.run(indexed.frame(other, 1.0)) is None
    assert key_of(indexed, "a.mp4") == key, "the browser keeps the thumbnails of an earlier search"


def test_thumbnails_show_the_second(indexed):
    key = key_of(indexed, "a.mp4")
    early, late = (np.asarray(Image.open(io.BytesIO(asyncio.run(indexed.frame(key, at))))) for at in (0.5, 5.5))
    assert early.shape == late.shape == (270, 360, 3) and np.abs(early.astype(int) - late).max() > 100
    assert indexed.start_s(key) == 0.0


def test_a_video_that_is_gone_is_not_served(indexed, monkeypatch):
    key = key_of(indexed, "a.mp4")
    monkeypatch.setitem(indexed._files.paths, key, indexed.folder / "gone.mp4")
    assert indexed.video_file(key) is None and indexed.start_s(key) is None and asyncio.run(indexed.frame(key, 1.0)) is None


@pytest.mark.parametrize("end", ["in work", "waiting", "closed"])
def test_a_picture_that_the_end_of_the_server_cuts_off_is_a_503(indexed, monkeypatch, end):
    testclient = pytest.importorskip("fastapi.testclient", reason="fastapi is not installed; it comes with the extra `demo`")
    key = key_of(indexed, "a.mp4")
    begun, may_end, has_ended = (threading.Event() for _ in range(3))
    with ThreadPoolExecutor(1) as decoders, ThreadPoolExecutor(1) as browser:
        monkeypatch.setattr(indexed, "_decoders", decoders)
        monkeypatch.setattr(indexed, "_frame", lambda *_: begun.set() or may_end.wait(30))
        monkeypatch.setattr(indexed, "has_ended", has_ended.is_set)
        client = testclient.TestClient(build_library_app(indexed, lambda *_: None), base_url="http://127.0.0.1")
        if end == "closed":
            decoders.shutdown()
        if end == "waiting":
            decoders.submit(may_end.wait, 30)
        reply = browser.submit(client.get, f"/library/frames/{key}?at=1")
        if end == "in work":
            assert begun.wait(30)
            has_ended.set()
        if end == "waiting":
            while not decoders._work_queue.qsize():
                time.sleep(0.01)
            decoders.shutdown(wait=False, cancel_futures=True)
        assert reply.result(30).status_code == 503
        may_end.set()


@pytest.mark.parametrize(
    ("output_format", "name", "beginning"),
    [
        ("csv", "a-red-ring.csv", b"query,rank,name"),
        ("table", "a-red-ring.txt", b"a red ring"),
        ("jsonl", "a-red-ring.jsonl", b'{"query": "a red ring"'),
        ("otio", "a-red-ring.otio", b"{"),
    ],
)
def test_all_moments_are_exported(indexed, output_format, name, beginning):
    find(indexed)
    file = indexed.export(last_search(indexed), [], output_format)
    assert file.name == name and file.content.startswith(beginning) and file.notes == ()
    assert all(part.rpartition("/")[2].encode() in file.content for part in NAMES)


def test_selected_moments_are_exported(indexed):
    find(indexed)
    hits = indexed._results[last_search(indexed)].hits
    (row,) = map(json.loads, indexed.export(last_search(indexed), [2, 0, 2], "jsonl").content.splitlines())
    assert [(hit["name"], hit["start_s"]) for hit in row["hits"]] == [(hits[i].name, hits[i].start_s) for i in (0, 2)]


@pytest.mark.parametrize("output_format", ["srt", "edl"])
def test_several_videos_become_an_archive_where_one_file_cannot_hold_them(indexed, output_format):
    find(indexed)
    file = indexed.export(last_search(indexed), [], output_format)  # an EDL has one frame rate
    assert file.name == f"a-red-ring-{output_format}.zip"
    with zipfile.ZipFile(io.BytesIO(file.content)) as archive:
        assert sorted(archive.namelist()) == sorted(name.removesuffix("mp4") + output_format for name in NAMES)
    find(indexed, within="a")
    assert indexed.export(last_search(indexed), [], output_format).name == f"a-red-ring.{output_format}"


@pytest.mark.parametrize(
    ("search", "ranks", "output_format"),
    [("gone", [], "csv"), (None, [999], "csv"), (None, [-1], "csv"), (None, ["0"], "csv"), (None, [], "exe"), (None, [], "")],
)
def test_wrong_exports_are_refused(indexed, search, ranks, output_format):
    find(indexed)
    with pytest.raises(UsageError, match="Search again"):
        indexed.export(search or last_search(indexed), ranks, output_format)


def test_before_anything_is_indexed_a_search_says_so(world, tmp_path):
    shutil.copy(world.videos / "test_0000.mp4", tmp_path / "a.mp4")
    search = LibrarySearch(tmp_path, device="cpu")
    assert "Nothing is indexed yet." in find(search)["html"]
    search.close()


@pytest.mark.parametrize(
    ("progress", "text", "name", "bar"),
    [
        (None, "Looking for new videos", "", (0, 0)),
        (Progress("check", 3, 12, "b.mp4"), "Reading new files: 3 of 12 files", "b.mp4", (3, 12)),
        (Progress("load", 0, 1, "ViT-B-32"), "Loading CLIP", "", (0, 0)),
        (
            Progress("videos", 3, 1200, video="b.mp4", speed=Throughput(3, 1.0, "CLIP", 0.0, left_s=75)),
            "Indexing: 3 of 1,200 videos, about 1:15 left",
            "b.mp4",
            (3, 1200),
        ),
        (Progress("frames", 3, 12, "b.mp4"), "Indexing: 3 of 12 clips", "b.mp4", (3, 12)),
        (Progress("vectors", 0, 1), "Preparing the search", "", (0, 0)),
    ],
)
def test_progress_of_the_index_says_what_is_done(progress, text, name, bar):
    indexing = Indexing(lambda report: None)
    if progress:
        indexing._report(progress)
    assert indexing.progress_reply() == {"text": text, "name": name, "done": bar[0], "total": bar[1]}


def test_indexing_stops_and_goes_on():
    may_end = threading.Event()
    started: list[int] = []

    def update(report) -> None:
        started.append(1)
        report(Progress("videos", 1, 2, video="a.mp4"))
        while not may_end.wait(0.01):
            report(Progress("videos", 1, 2, video="a.mp4"))

    indexing = Indexing(update)
    indexing.start()
    indexing.start()
    indexing.stop()
    assert (indexing.state, indexing.runs, started) == ("stopped", 1, [1])
    may_end.set()
    indexing.start()
    indexing._thread.join()
    assert (indexing.state, indexing.runs, started, indexing.error) == ("ready", 2, [1, 1], "")


@pytest.mark.parametrize(
    ("error", "message"), [(CacheError("busy."), "busy."), (RuntimeError("out of frames"), "out of frames Look at the terminal")]
)
def test_a_failed_update_has_a_reason(capsys, error, message):
    def update(report) -> None:
        raise error

    indexing = Indexing(update)
    indexing.start()
    indexing._thread.join()
    assert indexing.state == "failed" and message in indexing.error
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, RuntimeError)


def test_the_text_tower_is_loaded_once(indexed, monkeypatch):
    find(indexed)
    monkeypatch.setattr("costl.search.queries.load_text_encoder", lambda *_, **__: pytest.fail("loaded again"))
    monkeypatch.setattr(indexed._indexed, "_opened_after", -1)
    before = indexed._indexed.open()
    monkeypatch.setattr(indexed._indexed, "_opened_after", -1)
    assert find(indexed)["summary"].endswith("in 3 of 3 videos") and indexed._indexed.open() is not before


def test_curves_are_the_cosines_of_each_clip(indexed):
    library = indexed._indexed.open()
    curves = library.curves("a red ring", {"a.mp4", "2026/b.mp4", "gone.mp4"})
    assert curves.keys() == {"a.mp4", "2026/b.mp4"} and library.curves("a red ring", []) == {}
    sentence = library._queries._text_encoder().sentence_vectors(["a red ring"])[0] - library._queries.ordinary().vectors.mean(0)
    content = library.files.files["a.mp4"].content
    assert curves["a.mp4"] == pytest.approx(library._features.joint_vectors(content) @ sentence, abs=2e-3)


def card(cosines: list[float], *, start_s: float = 2.0, end_s: float = 6.0, name: str = "a.mp4") -> Card:
    hit = Hit("q", name, Path("/v") / name, 2.0 * len(cosines), start_s, end_s, 0.5)
    return Card(0, hit, "key", np.array(cosines, np.float32), 2.0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("cosines", "start_s", "end_s", "best_s"),
    [
        ([9, 0, 1, 9], 2, 6, 5),
        ([9, 1, 0, 9], 2, 6, 3),
        ([1, 0, 0, 1], 6.5, 7.5, 7),
        ([0.5], 0, 2, 1),
        ([0, 0, 1], 5.9, 6, 5.9),
    ],
)
def test_the_thumbnail_shows_the_most_similar_clip_of_the_moment(cosines, start_s, end_s, best_s):
    assert card(cosines, start_s=start_s, end_s=end_s).best_s == pytest.approx(best_s)


def test_curves_have_the_scale_of_the_page():
    points = card([0.0, 1.0, 0.5]).points
    assert points == [(0.0, 0.95), (1.0, 0.95), (3.0, 0.05), (5.0, 0.5), (6.0, 0.5)]
    long = card([0.0] * 5000 + [1.0] + [0.0] * 4999).points
    assert len(long) == 102 and min(y for _, y in long) == 0.05, "the highest clip of a long video is seen"


def test_names_and_sentences_are_escaped():
    one = card([0.0, 1.0], name='"><script>/<script>x.mp4')
    result = SearchResult('"><script>', (one.hit,), notes=("<script>",))
    for hits, cards in (((one.hit,), [one]), ((), [])):
        shown = SearchResult(result.query, hits, notes=result.notes)
        assert "<script>" not in results_html("key", shown, cards, filtered=True, has_more=True)
    assert "<script>" not in problem_page("<script>")


def test_an_app_is_built_by_its_first_request_and_again_after_an_error():
    fastapi = pytest.importorskip("fastapi")
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(_) -> AsyncIterator[None]:
        events.append("started")
        yield
        events.append("ended")

    def build():
        events.append("built")
        if len(events) == 1:
            raise UsageError("no such <weights>.")
        app = fastapi.FastAPI(lifespan=lifespan)
        app.get("/")(lambda: "hello")
        return app

    async def request(app) -> tuple[int, bytes]:
        sent: list[dict] = []

        async def send(message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "root_path": ""}
        await app(scope, None, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)

    async def requests() -> list[tuple[int, bytes]]:
        app = LazyApp(build, problem_page=problem_page)
        assert not events
        answers = [await request(app) for _ in range(3)]
        assert events == ["built", "built", "started"]
        await app.close()
        return answers

    (status, body), *others = asyncio.run(requests())
    assert status == 500 and b"no such &lt;weights&gt;." in body
    assert others == [(200, b'"hello"')] * 2 and events[-1] == "ended"
