"""A wrong input is refused before the libraries are loaded that take seconds to import, and a repeated question loads few."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

from costl.pipeline.encode import names
from costl.pipeline.encode.names import model_names, model_tags

HEAVY = "torch open_clip torchvision transformers timm matplotlib gradio dask distributed pandas scipy sklearn decord av"
# Runs each command in one process that has loaded nothing yet, and prints the exit code and what is loaded after it.
PROGRAM = """
import json, sys
from click.testing import CliRunner
from costl.commands import main
heavy, rows = json.load(sys.stdin)
for row in rows:
    result = CliRunner().invoke(main, row)
    print(json.dumps([result.exit_code, result.output, [name for name in heavy.split() if name in sys.modules]]))
"""
ANSWERED = [["--help"], ["--version"], ["cache"], ["predict", "--help"], ["data", "models", "siglip2"]]
REFUSED = {
    "extract --videos gone": "no such folder",
    "extract --videos empty": "no videos",
    "extract --videos unannotated --annotations wrong.jsonl": "'vid', 'duration' are missing",
    "extract --videos videos --annotations gone": "no annotations",
    "extract --videos videos --fps -1": "fps is -1.0",
    "extract --videos videos --fps nan": "fps is nan",
    "extract --videos videos --model ViT-B-23": "Did you mean ViT-B-32",
    "extract --videos videos --weights gone.pt": "no such weights file",
    "extract --videos videos --weights laion2b_s34b_b97k": "Did you mean laion2b_s34b_b79k",
    "extract --videos videos --weights opena=gone": "no weights called 'opena=gone'",
    "extract --videos videos --weights empty": "no weights. Expected a folder that open_clip",
    "extract --videos videos --model coca_base": "open_clip has no weights of coca_base. Give a file",
    "data models nothing-like-it": "no model of open_clip has 'nothing-like-it' in its name",
    "extract --videos videos --workers 0": "workers is 0",
    "extract --videos videos --shard 3/2": "expected I/N",
    "extract --videos videos --device tpu": "expected cpu, cuda",
    "train": "Missing option",
    "train --cache gone": "no such file",
    "train --cache wrong.jsonl": "not an HDF5 file",
    "train --cache feats.h5 --set train.epochs=x": "expected a whole number",
    "train --cache feats.h5 --config gone.yaml": "cannot be read",
    "train --cache feats.h5 --set data.domain=cooking": "no domain 'cooking'",
    "train --cache feats.h5 --device cuda:x": "expected cpu, cuda",
    "train --resume gone": "not a run",
    "evaluate": "no trained run",
    "evaluate --run gone": "not a run",
    "evaluate --run run --split gone": "no split 'gone'",
    "evaluate --run run --cache gone": "no cache there",
    "evaluate --run run --benchmark gone": "expected one of qvhighlights",
    "evaluate --predictions gone --truth videos/train.jsonl": "cannot be read",
    "evaluate --predictions wrong.jsonl --truth gone": "cannot be read",
    "evaluate --corpus": "no trained run",
    "evaluate --corpus --run run --split gone": "no split 'gone'",
    "evaluate --corpus --run run --split val --truth gone": "cannot be read",
    "evaluate --corpus --predictions gone --truth wrong.jsonl": "wrong.jsonl",
    "evaluate --submission out.zip --run run": "no split 'test'",
    "predict": "no video",
    "predict gone.mp4 dog": "no such file",
    "predict videos dog": "videos: a folder. Name the videos in it, such as videos/*.mp4",
    "predict videos/a.mp4 ...": "no letter or digit",
    "search dog": "name either a folder or a cache",
    "search dog --videos gone": "no such folder",
    "search dog --cache gone.h5": "gone.h5",
    "search dog --cache feats.h5 --run gone": "no such folder",
    "search --cache feats.h5 --image gone.png": "gone.png: no such file",
    "search --cache feats.h5 --image wrong.jsonl": "wrong.jsonl: not a picture",
    "search dog --cache feats.h5 --top 0": "runs/new is not used: its training has not finished.\nError: top is 0",
    "search dog --cache feats.h5 --keep much": "not a size",
    "search dog --cache feats.h5 --after today": "does not match the format",
    "predict videos/a.mp4 dog --run gone": "no such folder",
    "predict videos/a.mp4 dog --model hf://gone": "expected hf://user/name",
    "demo --run gone": "no such folder",
    "label": "Missing option",
    "label --videos gone": "no such folder",
    "label --videos empty": "no videos in it",
    "label --videos videos --run gone": "no such folder",
    "report gone": "not a run",
    "report run --split gone": "no split 'gone'",
    "quickstart --set a.b=1": "unknown section",
    "prepare gone --annotations gone --out new": "not a known benchmark",
    "prepare charades --annotations gone --out new --allow-missing-videos": "gone",
    "prepare gone.csv --videos videos --out new": "or the path of your own labels",
    "prepare videos --videos gone --out new": "gone: no such folder",
    "prepare wrong.jsonl --videos videos --out new": "wrong.jsonl:1: 'vid', 'duration' are missing",
    "reproduce gone --annotations gone --videos videos": "not a known benchmark",
    "reproduce charades --annotations gone": "--videos and --features are both missing",
    "reproduce charades --annotations gone --videos videos": "gone: no such folder",
    "reproduce charades --annotations videos --videos videos --dtype float99": "dtype is 'float99'",
    "reproduce charades --annotations videos --videos videos --set train.epochs=x": "expected a whole number",
    "data sample videos": "not a sample world",
    "data import --annotations gone --features a=gone --text gone": "no annotations",
    "data export gone new": "not a run",
    "cache status gone": "no such file",
    "cache verify gone": "no such file",
    "cache inspect feats.h5 gone": "no video 'gone'",
    "cache pack gone --out new": "no such file",
    "cache unpack gone --out new": "no such file",
    "cache merge new gone": "no such file",
    "cache gc gone": "no such file",
    "cache add-queries gone --annotations gone": "no such file",
    "cache add-queries feats.h5 --annotations gone": "no annotations",
    "study ablate --cache gone": "no such file",
    "study ablate --cache feats.h5 --split train --variants gone": "no such variant",
    "study repeat --cache feats.h5 --split gone": "no split 'gone'",
    "study compare gone gone --truth gone": "cannot be read",
    "study compare empty empty": "no results.json",
    "study compare gone gone": "--truth",
    "study diagnose --cache gone": "no such file",
    "bench extract --videos gone": "does not exist",
    "bench extract --model gone": "no open_clip model",
    "bench decode --videos gone": "does not exist",
    "bench cache --cache gone": "no such file",
}


@pytest.fixture(scope="module")
def outcomes(workspace) -> dict[str, tuple[int, str, list[str]]]:
    """(exit code, output, heavy libraries that are loaded) after each command, in one process."""
    commands = [*ANSWERED, *(line.split() for line in REFUSED)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([HEAVY, commands]),
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return {" ".join(command): json.loads(line) for command, line in zip(commands, done.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize("line", [" ".join(arguments) for arguments in ANSWERED])
def test_a_question_about_the_command_itself_loads_nothing_heavy(line, outcomes):
    code, _, loaded = outcomes[line]
    assert code in (0, 2) and loaded == []


@pytest.mark.parametrize(("line", "reason"), REFUSED.items())
def test_a_wrong_input_is_refused_before_anything_heavy_is_loaded(line, reason, outcomes):
    code, output, loaded = outcomes[line]
    assert code in (2, 3) and reason in output and "Traceback" not in output
    assert loaded == [], output


def test_the_names_of_models_are_those_of_open_clip(monkeypatch):
    known = set(open_clip.list_models())  # and those that other tests have added
    assert set(model_names()) == known
    monkeypatch.delitem(sys.modules, "open_clip")
    assert set(model_names()) <= known and {"ViT-B-32", "ViT-L-14", "RN50"} <= set(model_names())


def test_the_tags_of_models_are_those_of_open_clip(monkeypatch):
    models = [name for name in open_clip.list_models() if not name.startswith("ViT-tiny")]  # which tests add
    expected = {name: open_clip.list_pretrained_tags_by_model(name) for name in models}
    assert {name: model_tags(name) for name in models} == expected
    monkeypatch.delitem(sys.modules, "open_clip")
    assert {name: model_tags(name) for name in models} == expected


@pytest.mark.parametrize("source", ["", "_PRETRAINED = load()", "}", "_PRETRAINED = {**others, 'a': b}"])
def test_a_table_of_tags_in_another_form_is_no_reason_to_refuse(source, tmp_path, monkeypatch):
    (tmp_path / "pretrained.py").write_text(source)
    monkeypatch.delitem(sys.modules, "open_clip")
    monkeypatch.setattr(names, "_open_clip_folder", lambda: tmp_path)
    names._tags_in_source.cache_clear()
    try:
        assert model_tags("ViT-B-32") is None
    finally:
        names._tags_in_source.cache_clear()
