"""The commands that the end of `costl label` prints: from labels of nested videos to a trained model."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.label.app import closing_text
from costl.label.store import Edit, open_labels
from costl.label.videos import LabelVideos

SETTINGS = """\
extract: {{weights: {clip}}}
train:
  model: {{width: 32, heads: 2}}
  spatial: {{top_k: 4}}
  train: {{epochs: 1, warmup_steps: 1, batch_size: 15}}
"""
PLACES = {"train_0000": "garden", "train_0001": "2026/garden", "train_0002": "2026/x < y/été", "train_0003": "2025/CON"}


@pytest.mark.parametrize("videos", [4, 1], ids=["with validation", "without validation"])
def test_the_printed_commands_lead_to_a_model(world, tmp_path, monkeypatch, no_final_report, videos):
    monkeypatch.chdir(tmp_path)
    folder = Path("my videos")
    for source, name in PLACES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.videos / f"{source}.mp4", folder / f"{name}.mp4")
    (folder / "costl.yaml").write_text(SETTINGS.format(clip=world.videos / "clip"), encoding="utf-8")
    rows = map(json.loads, (world.videos / "train.jsonl").read_text(encoding="utf-8").splitlines())
    labelled = set([*PLACES][-videos:])
    with open_labels(folder / "labels.jsonl") as store:
        for row in rows:
            if row["vid"] in labelled:
                own = {name: value for name, value in row.items() if name != "qid"} | {"vid": PLACES[row["vid"]]}
                store.edit(Edit(None, "", own))
        for row in [label.row for label in store.labels()][:3]:
            absent = {name: row[name] for name in ("vid", "duration")} | {"query": "a dog flies", "relevant_windows": []}
            store.edit(Edit(None, "", absent))
        text = closing_text(store.labels(), LabelVideos(folder), path=store.path, folder=folder)
    assert "not in their video" in text and "deeper" not in text
    commands = [line.strip() for line in text.splitlines() if line.startswith("  costl ")]
    for command in commands:
        result = CliRunner().invoke(main, [*shlex.split(command)[1:], "--quiet"], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
    (run,) = Path("runs").iterdir()
    assert (run / "best.safetensors").exists() and Path("labels/val.jsonl").exists() == (videos > 1)
    assert json.loads(Path("labels/train.jsonl").read_text(encoding="utf-8").splitlines()[0])["kind"]
