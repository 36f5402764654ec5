"""Settings files: by path or by the name of a benchmark, in both layouts, and the fps that they state."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from costl.config import Config, load_config
from costl.config_files import BENCHMARKS, benchmark_settings, stated_fps
from costl.pipeline.data_folder import ExtractSettings, read_settings
from costl.pipeline.errors import UsageError


def refusal(*layers: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(*layers)
    return str(caught.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_settings_of_a_benchmark_serve_both_stages(name, tmp_path):
    config = load_config(Path(name))
    assert config.data.benchmark == name and config.train.select_on == "val"
    assert config.predict.round_s == {"qvhighlights": 2, "charades": 0, "tacos": 0}.get(name)
    (tmp_path / "costl.yaml").write_bytes(benchmark_settings(name).read_bytes())
    folder = read_settings(tmp_path)
    assert ExtractSettings(**folder.extract).fps == (1 if name in ("charades", "youtube-highlights") else 0.5)
    assert load_config(folder.train) == config  # what a cache carries is what --config NAME loads
    assert stated_fps([Path(name)]) == {name: folder.extract["fps"]}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_settings_of_a_benchmark_list_its_commands(name):
    text = benchmark_settings(name).read_text()
    comment = text[: text.index("\nextract:")]
    assert all(line.startswith("#") for line in comment.strip().splitlines())
    for part in (f"costl prepare {name} ", "costl extract", "costl train", "costl evaluate", "How long:", "compare"):
        assert part in comment
    assert "has not been run on this benchmark yet" in " ".join(comment.replace("#", " ").split())


@pytest.mark.parametrize("name", ["tvsum", "youtube-highlights"])
def test_settings_without_moments_use_only_the_saliency_losses(name):
    loss = load_config(Path(name)).loss
    assert (loss.focal, loss.iou, loss.contrast) == (0, 0, 0) and loss.saliency > 0


def test_long_videos_have_scales_for_their_moments():
    assert load_config(Path("tacos")).temporal.strides[-1] == 32


def test_a_file_in_the_current_folder_overrides_a_benchmark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tacos").mkdir()
    assert load_config(Path("tacos")).data.benchmark == "tacos"
    Path("tvsum").write_text("train: {epochs: 7}\n")
    assert load_config(Path("tvsum")).train.epochs == 7 and stated_fps([Path("tvsum")]) == {}


def test_a_name_of_no_file_or_benchmark_is_refused_with_a_hint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(Path("charade")) == "charade: neither a file nor a benchmark. Did you mean charades?"
    assert "Known: qvhighlights, charades, tacos, tvsum, youtube-highlights." in refusal(Path("imagenet"))


def test_training_reads_the_train_section_of_a_data_folder(tmp_path):
    file = tmp_path / "costl.yaml"
    file.write_text("extract: {fps: 2}\ntrain:\n  train: {epochs: 7}\n")
    assert load_config(file).train.epochs == 7 and stated_fps([file, {"train": {}}]) == {str(file): 2.0}
    file.write_text("extract: {fps: 2}\n")
    assert load_config(file) == Config()
    file.write_text("extract: {fps: 2}\ntrain: 3\n")
    assert "found 3, expected sections such as 'train:'" in refusal(file)
    file.write_text("extract: {fps: 2}\nmodel: {width: 64}\n")
    assert "unknown section 'model', expected extract and train" in refusal(file)
    file.write_text("extract: {fps: 2}\ntrain: {train: {epoch: 3}}\n")
    assert "Did you mean epochs?" in refusal(file)


def test_the_settings_of_benchmarks_are_shipped():
    shipped = {path.stem for path in benchmark_settings("tvsum").parent.glob("*.yaml")}
    assert shipped == {"default", *BENCHMARKS}
    for name in BENCHMARKS:
        assert set(yaml.safe_load(benchmark_settings(name).read_text())) == {"extract", "train"}
