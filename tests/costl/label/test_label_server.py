"""The labelling page without a browser: its videos, edits, proposals and copies, and the requests that it refuses."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from numbered_videos import frame_times, make_video
from PIL import Image

from costl.converters.label_studio_export import CONFIG
from costl.converters.prepare import prepare
from costl.label.app import build_label_app, closing_text, label
from costl.label.page import asset, page_html
from costl.label.proposals import Proposals, Proposed
from costl.label.proxies import Proxies
from costl.label.session import LabelSession
from costl.label.store import Edit, open_labels
from costl.label.videos import LabelVideos
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.videos import find_videos
from costl.search.hits import Hit, SearchResult

testclient = pytest.importorskip("fastapi.testclient", reason="fastapi is not installed; it comes with the extra `demo`")
ANSWER = {"query": "a red ring", "windows": [[1, 2.5]], "grades": {}, "absent": False}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A folder with videos in nested folders, two files of one name, one that browsers cannot play, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "2026" / "x < y").mkdir(parents=True)
    make_video(folder / "a.mp4", frame_times(75))
    for name in ("twin.mkv", "twin.mp4", "2026/x < y/été.mp4"):
        shutil.copy(folder / "a.mp4", folder / name)
    make_video(folder / "old.avi", frame_times(20, fps=5), codec="mpeg4", ticks=1000)
    (folder / "broken.mp4").write_text("not a video")
    return folder


class Page:
    """What a page sends to a server."""

    def __init__(self, session: LabelSession):
        self.session = session
        self.client = testclient.TestClient(build_label_app(session), base_url="http://127.0.0.1")
        self.state = self.get("state")
        self.keys = {video["name"]: video["key"] for video in self.state["videos"]}

    def get(self, path: str, status: int = 200) -> Any:
        reply = self.client.get(f"/label/{path}")
        assert reply.status_code == status, reply.text
        return reply.json() if "json" in reply.headers.get("content-type", "") else reply

    def post(self, path: str, body: Any, status: int = 200, **headers: str) -> Any:
        reply = self.client.post(f"/label/{path}", json=body, headers={"x-costl-token": self.state["token"], **headers})
        assert reply.status_code == status, reply.text
        return reply.json() if reply.content else None

    def edit(self, status: int = 200, **sent: Any) -> Any:
        return self.post("edits", {"video": "a.mp4", "id": "", "version": "", "answer": ANSWER} | sent, status)


@pytest.fixture
def page(videos, tmp_path, monkeypatch) -> Iterator[Page]:
    with open_labels(tmp_path / "labels.jsonl") as store:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        session = LabelSession(store, LabelVideos(videos), Proposals(videos, device="cpu"), Proxies(tmp_path / "cache"))
        yield Page(session)
        session.close()


def test_videos_are_listed_with_those_without_labels_first(page):
    page.edit()
    page.edit(video="broken.mp4", status=422)
    listed = page.get("state")
    assert [video["name"] for video in listed["videos"]] == [
        "2026/x < y/été.mp4",
        "broken.mp4",
        "old.avi",
        "twin.mkv",
        "twin.mp4",
        "a.mp4",
    ]
    first = listed["videos"][0]
    assert (first["file"], first["folder"], first["labels"]) == ("été.mp4", "2026/x < y/", 0)
    assert listed["videos"][-1]["labels"] == 1 and listed["sentences"] == ["a red ring"]
    assert "2 files are called 'twin'" in listed["videos"][3]["problem"]


def test_videos_are_called_as_extraction_calls_them(videos, tmp_path):
    assert {video.name: video.vid for video in LabelVideos(videos).all}["2026/x < y/été.mp4"] == "2026/x < y/été"
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    for name in ("videos/a.b.mp4", "videos/deep/c.mp4"):
        shutil.copy(videos / "a.mp4", tmp_path / name)
    extracted = {video.name for video in find_videos(tmp_path, recursive=True)}
    assert {video.vid for video in LabelVideos(tmp_path).all} == extracted == {"a.b", "deep/c"}
    with pytest.raises(UsageError, match="no videos in it"):
        LabelVideos(_made(tmp_path / "empty"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.skipif(os.name != "posix", reason="needs names that are not UTF-8")
def test_a_name_that_is_not_utf_8_is_shown_and_cannot_be_labelled(videos, tmp_path):
    shutil.copy(videos / "a.mp4", os.fsencode(tmp_path) + b"/\xff.mp4")
    (video,) = LabelVideos(tmp_path).all
    assert video.file == "\\xff.mp4" and "not valid UTF-8. Rename it" in video.problem


def test_an_edit_is_on_the_disk_when_it_is_answered(page):
    reply = page.edit()
    row = {"qid": 1, "vid": "a", "duration": 3, "query": "a red ring", "relevant_windows": [[1, 2.5]]}
    journal = page.session._store.path.with_name("labels.jsonl.journal").read_text().splitlines()
    assert json.loads(journal[-1]) == {"qid": 1, "before": None, "after": row}
    shown = reply["label"]
    assert (shown["id"], shown["windows"], shown["grades"], shown["absent"]) == ("1", [[1, 2.5]], {}, False)
    graded = page.edit(id="1", version=shown["version"], answer=ANSWER | {"grades": {"0": 3}})["label"]
    assert graded["grades"] == {"0": 3} and graded["raters"] == 1
    assert page.get(f"labels/{page.keys['a.mp4']}")["labels"] == [graded]
    assert page.edit(id="1", version=graded["version"], answer=None)["label"] is None
    restored = page.edit(id="1", answer=ANSWER | {"grades": {"0": 3}})["label"]
    assert restored == graded


def test_a_label_of_a_nested_video_and_one_that_is_absent(page):
    page.edit(video="2026/x < y/été.mp4", answer=ANSWER | {"windows": [], "absent": True})
    assert page.client.get("/label/export").text == (
        '{"qid": 1, "vid": "2026/x < y/été", "duration": 3, "query": "a red ring", "relevant_windows": []}\n'
    )


# Rows that a label file may hold: with fields that the page does not know, ratings of three people, no answer, other names.
ROWS = [
    {"qid": "x", "query": "a  dog", "vid": "a", "duration": 3, "relevant_windows": [[0.1234567, 1], [1.5, 3]], "kind": "motion"},
    {"qid": 7, "query": "a dog", "vid": "2026/x < y/été", "duration": 3, "relevant_windows": [[1, 2]], "by": {"who": ["Ann"]}},
    {"qid": 8, "query": "no cat", "vid": "2026/x < y/été", "duration": 3, "relevant_windows": [], "sure": True},
    {"qid": 9, "query": "open", "vid": "a", "duration": 3, "asked": "Bo"},
    {"qid": 10, "query": "graded", "vid": "old", "duration": 4, "relevant_clip_ids": [0, 1], "saliency_scores": [[1, 4], [0, 1]]},
]


def test_fields_that_the_page_does_not_know_survive_edits(videos, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    with open_labels(path) as store:
        session = LabelSession(store, LabelVideos(videos), Proposals(videos), Proxies(tmp_path))
        page = Page(session)
        names = {"a": "a.mp4", "2026/x < y/été": "2026/x < y/été.mp4", "old": "old.avi"}
        for row in ROWS:
            of_video = page.get(f"labels/{page.keys[names[row['vid']]]}")["labels"]
            (shown,) = [label for label in of_video if label["id"] == json.dumps(row["qid"])]
            answer = {"query": f"{row['query']}!", "windows": [[0.5, 1]], "grades": None, "absent": False}
            changed = page.edit(video=names[row["vid"]], id=shown["id"], version=shown["version"], answer=answer)["label"]
            gone = {"video": names[row["vid"]], "id": shown["id"], "version": changed["version"], "answer": None}
            page.edit(**gone)
            page.edit(video=names[row["vid"]], id=shown["id"], answer=answer)  # undo brings the row back
        session.close()
    after = {row["qid"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    for row in ROWS:
        expected = row | {"query": " ".join(f"{row['query']}!".split()), "relevant_windows": [[0.5, 1]]}
        assert after[row["qid"]] == expected


def test_label_studio_gets_the_labels_and_prepare_reads_them_back(videos, tmp_path):
    """Through the server's route: every row comes back as it is, with all its fields, those of nested videos too."""
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "2026/x < y/été.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / name, folder / name)
    make_video(folder / "old.mp4", frame_times(40, fps=10))
    shutil.copy(videos / "a.mp4", folder / "2026" / "a.mp4")  # of the same name as a labelled one
    with open_labels(path) as store:
        session = LabelSession(store, LabelVideos(folder), Proposals(folder), Proxies(tmp_path))
        page = Page(session)
        reply = page.client.get("/label/label-studio")
        configuration = page.client.get("/label/label-studio.xml")
        session.close()
    assert configuration.text == CONFIG and configuration.headers["content-type"] == "application/xml"
    assert "attachment" in configuration.headers["content-disposition"] and "attachment" in reply.headers["content-disposition"]
    tasks = {task["data"]["video"]: task for task in reply.json()}
    names = ("a.mp4", "2026/x%20%3C%20y/%C3%A9t%C3%A9.mp4", "old.mp4")
    assert list(tasks) == [f"/data/local-files/?d=videos/{name}" for name in names]
    assert [task["data"]["fps"] for task in tasks.values()] == [25.0, 25.0, 10.0]
    assert [len(task["annotations"][0]["result"]) for task in tasks.values()] == [4, 2, 0]
    (tmp_path / "tasks.json").write_bytes(reply.content)
    report = prepare(str(tmp_path / "tasks.json"), videos=folder, out=tmp_path / "out", val_share=0)
    text = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")
    assert sorted(map(json.loads, text.splitlines()), key=str) == sorted(ROWS, key=str) and report.missing == []


def test_labels_of_videos_that_are_not_here_are_exported(page, tmp_path):
    page.session._store.edit(Edit(None, "", {"query": "x", "vid": "gone/b", "duration": 9, "relevant_windows": [[1, 2]]}))
    page.edit(video="2026/x < y/été.mp4")
    tasks = page.client.get("/label/label-studio").json()
    assert [(task["data"]["video"].rpartition("=")[2], task["data"]["fps"]) for task in tasks] == [
        (f"{page.session.videos.folder.name}/gone/b", 25.0),
        (f"{page.session.videos.folder.name}/2026/x%20%3C%20y/%C3%A9t%C3%A9.mp4", 25.0),
    ]


def test_another_window_gets_changes_and_conflicts(page):
    first = page.edit()["label"]
    other = Page(page.session)
    changed = other.edit(id="1", version=first["version"], answer=ANSWER | {"query": "theirs"})
    reply = page.edit(id="1", version=first["version"], answer=ANSWER | {"query": "mine"}, status=409)
    assert reply["current"] == changed["label"]
    assert page.edit(answer=ANSWER | {"query": "theirs", "windows": [[2, 3]]}, status=409)["current"] == changed["label"]
    changes = page.get("changes?count=0&video=a.mp4")
    assert changes["labels"] == [changed["label"]] and changes["counts"] == {"a.mp4": 1} and "theirs" in changes["sentences"]
    assert "labels" not in page.get(f"changes?count={changes['count']}&video=a.mp4")
    assert "labels" not in page.get("changes?count=0&video=old.avi")
    other.edit(id="1", version=changed["label"]["version"], answer=None)
    assert page.edit(id="1", version=changed["label"]["version"], status=409)["current"] is None


def test_ratings_of_several_people_stay(videos, tmp_path):
    path = tmp_path / "labels.jsonl"
    row = {"qid": "x", "query": "q", "vid": "a", "duration": 2.5, "relevant_clip_ids": [0], "saliency_scores": [[1, 2, 4]]}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"qid": "y", "vid": "gone"}) + "\n")
    with open_labels(path) as store:
        session = LabelSession(store, LabelVideos(videos), Proposals(videos), Proxies(tmp_path))
        page = Page(session)
        (shown,) = page.get(f"labels/{page.keys['a.mp4']}")["labels"]
        assert shown["raters"] == 3 and shown["grades"] == {"0": 2.33} and page.state["elsewhere"] == 1
        answer = {"query": "q", "windows": [[1, 3]], "grades": None, "absent": False}
        page.edit(id='"x"', version=shown["version"], answer=answer)
        session.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [row | {"relevant_windows": [[1, 3]], "duration": 3}, row | {"qid": "y", "vid": "gone"}]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"video": "gone.mp4"}, "not among the videos of this page"),
        ({"video": "../a.mp4"}, "not among the videos of this page"),
        ({"video": "twin.mp4"}, "2 files are called"),
        ({"video": "broken.mp4"}, "not a video"),
        ({"video": 7}, "video is 7, expected a text"),
        ({"id": "true"}, "expected that of a label"),
        ({"id": "[1]"}, "expected that of a label"),
        ({"id": "{"}, "expected that of a label"),
        ({"answer": []}, "answer is not an object"),
        ({"answer": ANSWER | {"windows": [[1, 99]]}}, "0 <= start < end"),
        ({"answer": ANSWER | {"windows": [["1", 2]]}}, "not a number"),
        ({"answer": ANSWER | {"windows": [[1, 2, 3]]}}, "not a list of"),
        ({"answer": ANSWER | {"windows": "x"}}, "not a list of"),
        ({"answer": ANSWER | {"grades": {"-1": 2}}}, "grades is not an object"),
        ({"answer": ANSWER | {"grades": {"0": "2"}}}, "grades is not an object"),
        ({"answer": ANSWER | {"grades": {"9": 2}}}, "clip 9 is rated"),
        ({"answer": ANSWER | {"query": "..."}}, "no letter or digit"),
        ({"answer": ANSWER | {"query": ""}}, "query is empty"),
        ({"answer": {}}, "windows is not a list"),
    ],
)
def test_edits_that_are_not_possible_are_refused(page, sent, message):
    reply = page.edit(**sent, status=422)
    assert message in reply["problem"] and not page.session._store.labels()


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"x-costl-token": ""}, b"{}", 403),
        ({"x-costl-token": b"\xe9"}, b"{}", 403),
        ({"host": "evil.example"}, b"{}", 400),
        ({"sec-fetch-site": "cross-site"}, b"{}", 403),
        ({"sec-fetch-site": "same-site"}, b"{}", 403),
        ({}, b"{" + b" " * 1_000_001, 413),
        ({}, [b"{}"], 413),  # sent in chunks, of any length
        ({}, b"[]", 422),
        ({}, b"{", 422),
        ({}, b"[" * 100_000, 400),
    ],
)
def test_requests_of_others_and_large_ones_are_refused(page, headers, body, status):
    headers = {"x-costl-token": page.state["token"], "content-type": "application/json"} | headers
    for path in ("edits", "proposals"):
        content = body if isinstance(body, bytes) else iter(body)
        assert page.client.post(f"/label/{path}", content=content, headers=headers).status_code == status
    assert page.session._store.labels() == []


PATHS = ("videos/x", "videos/..%2fa.mp4", "proxies/x", "pictures/x?at=1", "labels/x", "playback/x")
PATHS += ("files/x.css", "files/label.html", "files/..%2fpage.py")


@pytest.mark.parametrize("path", PATHS)
def test_nothing_else_is_served(page, path):
    page.get(path, status=404)


def test_files_are_served_in_ranges_under_their_keys_alone(page, videos):
    key = page.keys["a.mp4"]
    reply = page.client.get(f"/label/videos/{key}", headers={"range": "bytes=0-99"})
    assert reply.status_code == 206 and reply.content == (videos / "a.mp4").read_bytes()[:100]
    picture = page.client.get(f"/label/pictures/{key}?at=1.5")
    assert Image.open(io.BytesIO(picture.content)).size[1] == 360 and picture.headers["x-content-type-options"] == "nosniff"
    page.get(f"pictures/{page.keys['broken.mp4']}?at=1", status=404)
    page.get(f"proxies/{key}", status=404)
    for second in ("nan", "inf", "-inf", "-5", "1e300"):  # the nearest picture, or none
        assert page.client.get(f"/label/pictures/{key}?at={second}").status_code in (200, 404)


def test_playback_has_the_length_and_the_clips(page):
    playback = page.get(f"playback/{page.keys['a.mp4']}")
    assert (playback["start_s"], playback["duration_s"], playback["clips"]) == (0, 3, 1)
    assert playback["frame_s"] == pytest.approx(0.04) and playback["proxy"] == {"state": "none"}
    assert "not a video" in page.get(f"playback/{page.keys['broken.mp4']}", status=422)["problem"]
    assert "2 files are called" in page.get(f"playback/{page.keys['twin.mp4']}", status=422)["problem"]


def wait(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def test_a_copy_is_made_in_the_background(page):
    key = page.keys["old.avi"]
    assert page.post(f"proxies/{key}", {})["state"] in ("waiting", "running", "ready")
    wait(lambda: page.get("changes?count=0&video=old.avi")["proxy"] == {"state": "ready"})
    assert page.get(f"playback/{key}")["proxy"] == {"state": "ready"}
    assert page.client.get(f"/label/proxies/{key}").content[4:8] == b"ftyp"
    page.post(f"proxies/{page.keys['broken.mp4']}", {})
    failed = wait(lambda: page.get("changes?count=0&video=broken.mp4")["proxy"].get("error"))
    assert "not a video" in failed
    page.post("proxies/x", {}, status=404)


def test_without_an_index_there_are_no_proposals_and_a_reason(page):
    reply = page.post("proposals", {"video": "a.mp4", "sentence": "a red ring"})
    assert reply == {"note": "No proposals: nothing is indexed yet.", "spans": [], "curve": []}


def test_without_weights_the_page_says_why_and_labels_all_the_same(videos, tmp_path):
    with open_labels(tmp_path / "labels.jsonl") as store:
        proposals = Proposals(videos, weights=str(tmp_path / "gone.pt"), device="cpu")
        session = LabelSession(store, LabelVideos(videos), proposals, Proxies(tmp_path))
        page = Page(session)
        page.post("index/start", {})
        index = wait(lambda: (now := page.get("state")["index"])["state"] == "failed" and now)
        assert "no such weights file" in index["error"]
        assert "no such weights file" in page.post("proposals", {"video": "a.mp4", "sentence": "a dog"})["note"]
        assert page.edit()["label"]["id"] == "1"
        page.post("index/other", {}, status=404)
        session.close()


class FakeLibrary:
    """A library in which a sentence has the hits of its words: the start of a moment, or a minus sign for one below."""

    files = None

    def __len__(self) -> int:
        return 1

    def search_all(self, queries: list[str], *, top: int, filters: Any) -> list[SearchResult]:
        hits = [Hit("q", "a.mp4", Path("a.mp4"), 3.0, abs(float(w)), abs(float(w)) + 1, 0.9) for w in queries[0].split()]
        other = Hit("q", "a.mp4.mp4", Path("x"), 3.0, 0, 1, 0.9)
        shown = [hit for hit, word in zip(hits, queries[0].split(), strict=True) if word[0] != "-"]
        assert filters.within == "a.mp4" and top >= 5
        return [SearchResult("q", (other, *shown), tuple(hit for hit in hits if hit not in shown), 2, "zero-shot X")]

    def curves(self, query: str, names: set[str]) -> dict[str, list[float]]:
        return {"a.mp4": [0.1, 0.25]}


def test_proposals_are_the_moments_of_this_video(page, monkeypatch):
    monkeypatch.setattr(page.session.proposals._indexed, "open", FakeLibrary)
    reply = page.post("proposals", {"video": "a.mp4", "sentence": " 1  2 "})
    assert [(span["start"], span["end"]) for span in reply["spans"]] == [(1, 2), (2, 3)]
    assert reply["note"] == "Proposed by zero-shot X." and reply["curve"] == [0.1, 0.25]
    reply = page.post("proposals", {"video": "a.mp4", "sentence": "-1 -1.5 -2"})
    assert [span["start"] for span in reply["spans"]] == [1, 1.5] and "Nothing like this here" in reply["note"]


def test_a_newer_search_takes_the_turn_of_a_waiting_one(page, monkeypatch):
    may_go_on = threading.Event()
    find = lambda _, sentence: may_go_on.wait(60) and Proposed(note=sentence)  # noqa: E731
    monkeypatch.setattr(page.session.proposals, "_find", find)

    async def ask() -> list[dict]:
        asked = [asyncio.create_task(page.session.propose("a.mp4", sentence)) for sentence in ("first", "second", "third")]
        await asyncio.sleep(0.05)
        may_go_on.set()
        return list(await asyncio.gather(*asked))

    first, second, third = asyncio.run(ask())
    assert (first["note"], second["note"], third["note"]) == ("first", "", "third") and second["again"]


def test_an_error_of_the_search_is_a_note(page, monkeypatch, capsys):
    def fail() -> None:
        raise RuntimeError("out of memory.")

    monkeypatch.setattr(page.session.proposals._indexed, "open", fail)
    assert page.post("proposals", {"video": "a.mp4", "sentence": "x"})["note"] == "out of memory. Look at the terminal."
    assert "Traceback" in capsys.readouterr().err


def test_a_disk_that_refuses_is_a_problem_of_its_own(page, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert "No space left" in page.edit(status=507)["problem"]
    page.edit()


def test_a_page_names_no_other_host_and_escapes_nothing_by_hand():
    assert "http" not in page_html().replace("http-equiv", "")
    assert asset("base.css").startswith(":root") and asset("../label.css") is None
    scripts = re.findall(r'<script src="/label/files/(\w+\.js)" defer>', page_html())
    assert len(scripts) == 10 and not [name for name in scripts if "innerHTML" in asset(name)]


def test_the_end_says_how_many_labels_there_are_and_what_comes_next(page, videos, tmp_path):
    listed = page.session.videos
    text = closing_text([], listed, path=tmp_path / "labels.jsonl", folder=videos)
    assert text == f"{tmp_path}/labels.jsonl: 0 labels of 0 of 6 videos: 0 moments."
    page.edit()
    page.edit(answer=ANSWER | {"query": "a blue star", "windows": [], "absent": True})
    page.edit(video="2026/x < y/été.mp4")
    labels = page.session._store.labels()
    text = closing_text(labels, listed, path=Path("my labels.jsonl"), folder=Path("dir"))
    assert text.splitlines() == [
        "my labels.jsonl: 3 labels of 2 of 6 videos: 2 moments, 1 not in their video.",
        "Several files are called 'twin': rename all but one of each before you go on.",
        "Next:",
        "  costl prepare 'my labels.jsonl' --videos dir --out labels/",
        "  costl extract --videos dir --annotations labels/ --out 'my labels.h5'",
        "  costl train --cache 'my labels.h5'",
    ]
    assert closing_text([], listed, path=Path("x.jsonl"), folder=videos).count("\n") == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"videos": "gone"}, UsageError, "no such folder"),
        ({"out": "a folder.jsonl"}, UsageError, "a folder, expected the name of a file"),
        ({"out": "labels.csv"}, UsageError, "must end in .jsonl"),
        ({"out": "bad.jsonl"}, UsageError, "bad.jsonl:1: 'x' is not JSON"),
        ({"port": 1}, UsageError, "port 1 of 127.0.0.1 cannot be used"),
    ],
)
def test_what_cannot_be_labelled_is_refused_at_once(videos, tmp_path, monkeypatch, options, error, message):
    if options.get("port") and os.name == "posix" and os.getuid() == 0:
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(error, match=f"port {port} of"):
                label(videos, out=tmp_path / "x.jsonl", port=port)
        return
    (tmp_path / "a folder.jsonl").mkdir()
    (tmp_path / "bad.jsonl").write_text("x\n")
    arguments = {"videos": videos, "out": tmp_path / "labels.jsonl", "port": 0}
    arguments |= {name: tmp_path / value if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(error, match=message):
        label(arguments.pop("videos"), **arguments)


def test_without_fastapi_it_says_how_to_install_it(videos, monkeypatch):
    monkeypatch.setattr("costl.label.app.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'costl\[demo\]'"):
        label(videos)


def test_a_video_that_is_gone_is_not_served(page, videos):
    key = page.keys["2026/x < y/été.mp4"]
    video = page.session.videos.with_key(key)
    moved = video.path.rename(videos / "moved")
    try:
        page.get(f"videos/{key}", status=404)
        page.get(f"playback/{key}", status=404)
        with pytest.raises(VideoError):
            page.session.videos.playback(video)
    finally:
        moved.rename(video.path)
