"""No command writes over a file that it reads, or over one that is not its own earlier output."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from numbered_videos import frame_times, make_video
from test_commands import TINY, costl, error_message

from costl.ask.answer import Answer, Moment, Saliency
from costl.ask.formats import FORMATS
from costl.ask.output import write_answers
from costl.commands import main
from costl.pipeline.errors import UsageError
from costl.train import train

VIDEO = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 100
PREDICT = ["predict", "one.mp4", "a cat", "--model", "runs/none"]
# Command line, the file that lies there, and the words of the refusal. No command gets as far as its model.
REFUSED = {
    "text over the video": ([*PREDICT, "--out", "one.mp4"], "one.mp4", "ends in .mp4, expected .txt, .json"),
    "picture over the video": ([*PREDICT, "--picture", "one.mp4"], "one.mp4", "its name must end in .png"),
    "text over a video": ([*PREDICT, "--out", "two.mkv"], "two.mkv", "ends in .mkv"),
    "text into a picture": ([*PREDICT, "--out", "p.png"], "p.png", "ends in .png"),
    "picture as JPEG": ([*PREDICT, "--picture", "p.jpg"], "p.jpg", "its name must end in .png"),
    "picture without suffix": ([*PREDICT, "--picture", "p"], "p", "its name must end in .png"),
    "table over notes": ([*PREDICT, "--out", "notes.txt"], "notes.txt", "not an earlier output"),
    "table, no suffix": ([*PREDICT, "--out", "notes"], "notes", "not an earlier output"),
    "JSON over annotations": ([*PREDICT, "--out", "train.json"], "train.json", "not an earlier output"),
    "lines over annotations": ([*PREDICT, "--out", "train.jsonl"], "train.jsonl", "not an earlier output"),
    "CSV over labels": ([*PREDICT, "--out", "labels.csv"], "labels.csv", "not an earlier output"),
    "subtitles": ([*PREDICT, "--out", "one.srt"], "one.srt", "not an earlier output"),
    "web subtitles": ([*PREDICT, "--out", "one.VTT"], "one.VTT", "not an earlier output"),
    "picture over another": ([*PREDICT, "--picture", "p.PNG"], "p.PNG", "not an earlier output"),
    "other format": ([*PREDICT, "--format", "csv", "--out", "a.json"], "a.json", "but the format is csv"),
    "other format, --json": ([*PREDICT, "--json", "--out", "a.csv"], "a.csv", "but the format is json"),
    "a run's settings": (
        [*PREDICT[:-1], "runs/r", "--overwrite", "--out", "runs/r/run.json"],
        "runs/r/run.json",
        "reads that file",
    ),
    "metrics": (["evaluate", "--out", "e"], "e/metrics.json", "not an earlier output"),
    "predictions": (["evaluate", "--out", "e"], "e/predictions.jsonl", "not an earlier output"),
    "parquet": (["evaluate", "--out", "e"], "e/predictions.parquet", "not an earlier output"),
    "picture of predictions": (["evaluate", "--out", "e"], "e/predictions.png", "not an earlier output"),
    "rankings": (["evaluate", "--corpus", "--out", "e"], "e/corpus-rankings.jsonl", "not an earlier output"),
    "corpus metrics": (["evaluate", "--corpus", "--out", "e"], "e/corpus-metrics.json", "not an earlier output"),
    "submission over a zip": (["evaluate", "--submission", "a.zip"], "a.zip", "not an earlier output"),
    "submission over a cache": (["evaluate", "--submission", "feats.h5"], "feats.h5", "must end in .zip"),
    "report over a page": (["report", "--out", "index.html"], "index.html", "not an earlier output"),
    "report over a video": (["report", "--out", "one.mp4"], "one.mp4", "must end in .html or .htm"),
    "extract over the video": (["extract", "--videos", ".", "--out", "one.mp4"], "one.mp4", "not an HDF5 file"),
    "extract over notes": (["extract", "--videos", ".", "--out", "notes.txt"], "notes.txt", "not an HDF5 file"),
    "pack over the video": (["cache", "pack", "c.h5", "--out", "one.mp4"], "one.mp4", "exists"),
    "pack over itself": (["cache", "pack", "c.h5", "--out", "c.h5"], "c.h5", "exists"),
    "unpack over the video": (["cache", "unpack", "packed.h5", "--out", "one.mp4"], "one.mp4", "exists"),
    "merge over the video": (["cache", "merge", "one.mp4", "c.h5"], "one.mp4", "not an HDF5 file"),
    "ablation": (["study", "ablate", "--cache", "c.h5", "--out", "e"], "e/ablation.json", "not an earlier output"),
    "ablation table": (["study", "ablate", "--cache", "c.h5", "--out", "e"], "e/ablation.md", "not an earlier output"),
    "repetition": (["study", "repeat", "--cache", "c.h5", "--out", "e"], "e/repeat.json", "not an earlier output"),
    "quickstart": (["quickstart", "--out", "e"], "e/results.json", "not an earlier output"),
    "quickstart's videos": (["quickstart", "--out", "e"], "e/videos/one.mp4", "not a sample world"),
    "sample": (["data", "sample", "e"], "e/train.jsonl", "not a sample world"),
    "sample over objects": (["data", "sample", "e"], "e/objects.jsonl", "not an earlier output"),
    "training": (["train", "--cache", "c.h5", "--out", "e"], "e/config.yaml", "holds files already"),
    "import": (
        ["data", "import", "--annotations", "a", "--features", "clip=clip", "--text", "clip", "--out", "one.mp4"],
        "one.mp4",
        "not an HDF5 file",
    ),
}  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    for name in ("one.mp4", "two.mkv"):
        (tmp_path / name).write_bytes(VIDEO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def any_run(monkeypatch) -> None:
    """Commands that look at the run first go on without one."""
    for module in ("evaluate", "ask"):
        monkeypatch.setattr(f"costl.commands.{module}.check_run", lambda *_, **__: None)


@pytest.fixture
def caches(home, world) -> Path:
    """The cache of the world as c.h5, and packed."""
    shutil.copy(world.cache, home / "c.h5")
    shutil.copytree(world.cache.with_name("feats.h5.parts"), home / "c.h5.parts")
    return home


def content_for(path: Path) -> bytes:
    """Content that somebody may have in a file of this name, as like our own as it gets."""
    picture = io.BytesIO()
    with zipfile.ZipFile(picture, "w") as archive:
        archive.writestr("hl_val_submission.jsonl", "{}")
    known = {
        ".json": b'[\n  {\n    "video": "one",\n    "query": "a cat",\n    "start": 1\n  }\n]\n',
        ".jsonl": b'{"video": "one", "query": "a cat", "moments": [[1, 2]]}\n',
        ".csv": b"video,start,end,text\none,1,2,a cat\n",
        ".srt": b"1\n00:00:01,000 --> 00:00:02,000\nHello (softly)\n",
        ".vtt": b"WEBVTT\n\n00:01.000 --> 00:02.000\nHello (2.50 euros)\n",
        ".png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 20 + b"tEXtSoftware\0Matplotlib version3",
        ".txt": "one.mp4 · 0:24\n".encode(),
        ".zip": picture.getvalue(),
        ".html": b"<!doctype html><html><head><title>CoSTL</title>",
        ".parquet": b"PAR1" + b"qid query vid saliency" * 9 + b"PAR1",
        ".mp4": VIDEO,
    }
    return known.get(path.suffix.lower(), b"mine\n")


@pytest.mark.parametrize(("arguments", "name", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_a_file_of_the_user_is_not_written_over(request, home, any_run, arguments, name, reason):
    if "c.h5" in arguments or "packed.h5" in arguments:
        caches = request.getfixturevalue("caches")
        if "packed.h5" in arguments:
            assert costl("cache", "pack", "c.h5", "--out", caches / "packed.h5").exit_code == 0
    if "import" in arguments:
        published_features(home)
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(content_for(path))
    before = files_of(home)
    result = costl(*arguments)
    assert result.exit_code in (2, 3) and reason in error_message(result)
    after = files_of(home)
    assert {name: after[name] for name in before} == before
    assert {Path(name).name for name in after.keys() - before.keys()} <= {".lock"}


def published_features(home: Path) -> None:
    import numpy as np

    (home / "a").mkdir()
    (home / "clip").mkdir()
    row = '{"qid": 1, "query": "a cat", "vid": "v", "duration": 4, "relevant_windows": [[0, 2]]}\n'
    (home / "a" / "train.jsonl").write_text(row)
    np.savez(home / "clip" / "v.npz", features=np.ones((2, 8), np.float32))
    np.savez(home / "clip" / "qid1.npz", last_hidden_state=np.ones((3, 8), np.float32))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("link", [os.link, os.symlink, None], ids=["hard link", "link", "itself"])
@pytest.mark.parametrize(("option", "suffix"), [("--out", ".txt"), ("--out", ".json"), ("--picture", ".png")])
def test_a_file_that_is_read_is_not_written_over_even_on_request(home, link, option, suffix):
    video = (home / "video").with_suffix(suffix)  # a video may have any name
    video.write_bytes(VIDEO)
    out = home / f"other{suffix}" if link else video
    if link:
        link(video, out)
    result = costl("predict", video, "a cat", option, out, "--overwrite")
    assert result.exit_code == 2 and "this command reads that file" in error_message(result)
    assert video.read_bytes() == VIDEO and out.is_symlink() == (link is os.symlink)


@pytest.mark.parametrize("option", ["--out", "--picture"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_or_a_device_is_no_file_to_write(home, option, overwrite):
    (home / "folder.png").mkdir()
    (home / "folder.json").symlink_to(home / "folder.png")
    name = "folder.json" if option == "--out" else "folder.png"
    assert f"{name}: a folder, expected the name of a file" in error_message(costl(*PREDICT, option, name, *overwrite))
    if option == "--out" and not overwrite:
        assert "not an earlier output" in error_message(costl(*PREDICT, option, os.devnull))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["extract", "--videos", ".", "--out", "e"], 2),
        (["extract", "--videos", ".", "--out", "e", "--shard", "1/2"], 2),
        (["report", "--out", "e"], 2),
        (["evaluate", "--submission", "e"], 2),
        (["cache", "merge", "e", "e"], 2),
        (["cache", "merge", "new.h5", "e"], 3),
        (["cache", "pack", "e", "--out", "new.h5"], 3),
        (["train", "--cache", "e"], 3),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_a_folder_where_a_file_belongs_is_called_a_folder(home, any_run, arguments, code):
    (home / "e").mkdir()
    result = costl(*arguments)
    message = error_message(result)
    assert result.exit_code == code and "no such file" not in message
    assert "a folder, expected" in message or "must end in" in message or "name the cache to write" in message


ANSWER = Answer("a · cat (0.50)", Path("one.mp4"), 4.0, (Moment(0.0, 2.0, 0.5),), Saliency(2.0, (0.5, 0.1)), ("a note",))
NOTHING = Answer("a\ncat", Path("one.mp4"), 4.0, (), Saliency(2.0, (0.5, 0.1)))


@pytest.mark.parametrize("first", [[ANSWER], [NOTHING], [NOTHING, ANSWER], []], ids=["one", "no moment", "two", "none"])
@pytest.mark.parametrize("output_format", FORMATS)
def test_an_earlier_answer_is_replaced(home, output_format, first):
    (home / "one.mp4").unlink()  # then the picture has no frames
    out, picture = home / f"a.{output_format}", home / "a.png"

    def write(answers: list[Answer]) -> None:
        write_answers(
            answers, output_format=output_format, out=out, cut_folder=None, picture=picture, print_text=pytest.fail
        )

    write(first)
    write([ANSWER, ANSWER])
    once = out.read_bytes()
    assert once.count(b"cat") == 2 and picture.read_bytes().startswith(b"\x89PNG")
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"not an earlier output of this command.*--overwrite"):
        write([ANSWER])
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("content", [VIDEO, b"mine", None], ids=["video", "text", "folder"])
def test_a_cut_replaces_only_an_earlier_cut(home, content):
    make_video(home / "one.mp4", frame_times(100))
    before = (home / "one.mp4").read_bytes()

    def cut(overwrite: bool = False) -> list[Path]:
        return write_answers(
            [ANSWER], output_format="json", out=None, cut_folder=home, picture=None, print_text=len, overwrite=overwrite
        )

    (path,) = cut()
    assert cut() == [path]
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UsageError, match="a folder, expected" if content is None else "not an earlier output"):
        cut()
    if content is not None:
        assert path.read_bytes() == content and cut(overwrite=True) == [path] and path.read_bytes() != content
    assert (home / "one.mp4").read_bytes() == before


def test_every_command_replaces_its_own_output(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(world.cache, overrides=["train.epochs=1"], out=Path("runs/small"), device="cpu")
    shutil.copy(world.videos / "test_0000.mp4", "one.mp4")
    ask = ["predict", "one.mp4", "a cat", "--cache-dir", "store"]
    commands = [
        ([*ask, "--out", "a.csv", "--picture", "a.png"], ["a.csv", "a.png"]),
        (["evaluate", "--out", "e"], ["e/metrics.json", "e/predictions.jsonl", "e/predictions.parquet", "e/predictions.png"]),
        (["evaluate", "--submission", "a.zip"], ["a.zip"]),
        (["report", "--out", "a.html", "--detailed", "0"], ["a.html"]),
        (["data", "sample", "w", *TINY], ["w/objects.jsonl", "w/train.jsonl"]),
    ]  # fmt: skip
    assert costl("data", "export", "runs/small", "e").exit_code == 0
    assert "not empty" in error_message(costl("data", "export", "runs/small", "e"))
    shutil.rmtree("e")
    for arguments, names in commands:
        for _ in range(2):
            result = costl(*arguments)
            assert result.exit_code == 0, (arguments, result.output, result.exception)
            for name in names:
                assert os.stat(name).st_mtime_ns, "written again"
                os.utime(name, ns=(0, 0))
        if "sample" not in arguments:
            Path(names[0]).write_bytes(b"mine")
            refused = costl(*arguments)
            # In a folder with a predictions.parquet of ours, the other files are ours as well.
            assert names[0] == "e/metrics.json" or (refused.exit_code == 2 and "pass --overwrite" in refused.stderr)
            assert costl(*arguments, "--overwrite").exit_code == 0 and Path(names[0]).read_bytes() != b"mine"


def test_the_table_has_every_option_that_names_a_file_to_write():
    """An option with a new name for an output must be added here and to the table."""
    outputs = {"--out", "--picture", "--cut", "--submission"}
    paths = set()
    groups = [main]
    while groups:
        for command in groups.pop().commands.values():
            if hasattr(command, "commands"):
                groups.append(command)
            paths |= {
                name for item in command.params if type(item.type).__name__ == "Path" for name in item.opts if name[:2] == "--"
            }
    inputs = {"--annotations", "--videos", "--cache", "--config", "--run", "--resume", "--predictions", "--truth"}
    inputs |= {"--text", "--image"}
    assert paths - inputs - outputs == {"--objects", "--cache-dir", "--folder"}
