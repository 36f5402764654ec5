"""A script without `if __name__ == "__main__":` may use everything that starts processes, however Python runs the script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import costl

PATHS = [Path(costl.__file__).parents[1], Path(__file__).with_name("helpers")]
DECODE = """\
from fake_video import FakeVideo, fake_videos
from costl.pipeline.decode.pool import Decoded, decode_videos
from costl.pipeline.decode.worker import DecodeSettings
settings = DecodeSettings(fps=0.5, open_video=FakeVideo)
kinds = []
with decode_videos(fake_videos("a", "kill open", "b"), settings, processes=1) as events: kinds += map(type, events)

print(kinds.count(Decoded))
"""
LOAD = """\
import sys
from costl.data.loader import Loader
from costl.data.queries import read_queries
from costl.data.sampler import PlannedBatch
from costl.pipeline.cache.reader import CacheReader
features = CacheReader(sys.argv[1])
with Loader(features, patches=True, workers=1) as loader:
    print(len(list(loader.batches([PlannedBatch(read_queries(features, "val"))] * 2))))
"""
MEASURE = """\
from costl.pipeline.bench.measure import in_new_process
print(in_new_process(divmod, 13, 6)[0])
"""
DRAW = """\
import sys
from pathlib import Path
from costl.pipeline.world.write_world import WorldSettings, write_sample
settings = WorldSettings(videos={"train": 2}, queries=1, clips=(12, 12), side=64)
write_sample(Path(sys.argv[2]), settings=settings, processes=2)
print(len(list(Path(sys.argv[2]).glob("*.mp4"))))
"""


def run_script(*arguments: object, cwd: Path, text: str | None = None) -> tuple[int, str, str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["script.py"], None),
        (["-c", DECODE], None),
        (["-"], DECODE),
        (["-i", "-q", "-c", ""], DECODE),  # as a notebook does, line by line
        (["-m", "script"], None),
        (["-m", "folder.script"], None),
        (["folder"], None),
        (["-c", "import os; import costl; os.chdir('folder')\n" + DECODE], None),
        (["-c", f"import threading; threading.Thread(target=exec, args=({DECODE!r}, {{}})).start()"], None),
        (["-c", "import runpy; runpy.run_path('script.py', run_name='__main__')"], None),
        (["-W", "error", "-X", "dev", "-B", "script.py"], None),
    ],
    ids=["file", "argument", "stdin", "interactive", "module", "submodule", "folder", "moved", "thread", "runpy", "options"],
)
def test_videos_are_decoded_however_the_script_is_run(tmp_path, arguments, text):
    (tmp_path / "folder").mkdir()
    for name in ("script.py", "folder/script.py", "folder/__main__.py"):
        (tmp_path / name).write_text(DECODE)
    code, out, err = run_script(*arguments, cwd=tmp_path, text=text)
    assert (code, out, err.strip("\n>. ")) == (0, "2\n", "")


@pytest.mark.parametrize("script", [LOAD, MEASURE, DRAW], ids=["train.workers", "bench", "joblib"])
def test_a_script_runs_once_whatever_starts_processes(world, tmp_path, script):
    (tmp_path / "script.py").write_text(script)
    assert run_script("script.py", world.cache, tmp_path / "drawn", cwd=tmp_path) == (0, "2\n", "")
