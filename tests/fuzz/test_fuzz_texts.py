"""Invalid annotations, predictions, settings and JSON of runs are read, or refused by a CostlError with a message."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import yaml
from damage import as_json, damaged, odd_json

from costl.config import Config, load_config
from costl.config_files import stated_fps
from costl.data.annotations import parse_jsonl, parse_predictions
from costl.metrics.score_files import score_files
from costl.pipeline.data_folder import check_annotations, queries_in, read_annotations, read_settings
from costl.pipeline.errors import CostlError
from costl.training.run_folder import newest_run, read_run

FEW, MANY = 300, 50_000
QUERY = {
    "qid": 1,
    "query": "a dog",
    "vid": "v",
    "duration": 20.0,
    "relevant_windows": [[0, 4], [6.5, 12]],
    "relevant_clip_ids": [0, 1],
    "saliency_scores": [[4, 3, 2], [0, 1, 2]],
    "rated_windows": None,
    "domain": "BK",
}
PREDICTION = {
    "qid": 1,
    "query": "a dog",
    "vid": "v",
    "pred_relevant_windows": [[0, 4, 0.9], [5, 12, 0.5]],
    "pred_saliency_scores": [0.5, -1.5, 2, 0, 0, 0, 0, 0, 0, 0],
}
RUN = {
    "cache": "/nowhere/feats.h5",
    "fingerprint": {"model": "tiny", "fps": 0.5},
    "patch_grid": [2, 3],
    "source": {"model": "tiny", "weights": "w.pt"},
    "longest_clips": 12,
    "moment_grid_s": 2.0,
    "annotations": {"train": "0" * 64},
    "started": "2026-01-01T10:00:00+00:00",
    "versions": {"python": "3.11"},
}
FOLDER = {"extract": {"model": "ViT-B-32", "weights": "openai", "fps": 0.5, "tokens": "all"}, "train": Config().to_dict()}
BILLION_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = BILLION_LAUGHS.replace("[x,x,x,x,x,x,x,x,x]", "{x: 1}").replace("[*", "{<<: [*").replace("]", "]}")
SNIPPETS = (
    *("&a [*a]", "&a {b: *a}", "*nowhere", "&a", "!!bool maybe", "!!int ''", "!!int x", "!!float x", "!!timestamp x"),
    *(
        "2001-99-99",
        "!!binary '='",
        "!!set {a, b}",
        "!!omap [1]",
        "!!pairs [1]",
        "!!str [a]",
        "!!seq {a: 1}",
        "!!map [a]",
    ),
    *("!!python/object/apply:os.system ['touch pwned']", "!!python/name:os.system", "!new a", "!!null x", "{[1]: 2}"),
    *("? [a]\n: b", "<<: 1", "{<<: [1]}", "{<<: {a: 1}}", "0x" + "f" * 5000, "9" * 5000, "1:30:30", "0b101", "=", "."),
    *(
        "[" * 400,
        "{a: " * 400,
        "- " * 400,
        "'",
        '"\\ud800"',
        '"\\0"',
        '"\\x',
        "|\n x",
        ">-",
        "%YAML 9.9\n---",
        "---",
        "...",
    ),
    *(
        "\t",
        "@",
        "`",
        ": :",
        "? ?",
        "#",
        "-",
        "1e999",
        "-.inf",
        ".nan",
        "~",
        "1_000",
        "012",
        "\ufeff",
        "\u2028",
        "\x85",
    ),
)
Read = Callable[[Random, Path], object]


def annotations(random: Random, folder: Path) -> None:
    text = odd_lines(random, QUERY)
    attempt_all(lambda: parse_jsonl(text, "train.jsonl"), lambda: check_as_extraction(text))


def check_as_extraction(text: str) -> None:
    """Checks annotations as an extraction does."""
    check_annotations({"train": text})
    for query in queries_in({"train": text}):
        query.encode()  # the cache stores it as UTF-8


def predictions(random: Random, folder: Path) -> None:
    truth = folder / "truth.jsonl"
    predictions_path = folder / "predictions.jsonl"
    truth.write_bytes(as_json(random, QUERY if random.random() < 0.7 else odd_json(random, QUERY)) + b"\n")
    predictions_path.write_bytes(odd_lines(random, PREDICTION).encode(errors="surrogatepass"))
    official = random.random() < 0.3
    attempt_all(
        lambda: parse_predictions(predictions_path.read_bytes().decode(errors="replace"), "predictions.jsonl"),
        lambda: json.dumps(score_files(predictions_path, truth, official=official), allow_nan=False),
    )


def annotation_bytes(random: Random, folder: Path) -> None:
    path = folder / "train.jsonl"
    whole = "".join(json.dumps(QUERY | {"qid": qid}) + "\n" for qid in range(3)).encode()
    path.write_bytes(damaged(random, whole, whole))
    attempt_all(lambda: parse_jsonl(read_annotations(path)["train"], "train.jsonl"))


def settings_files(random: Random, folder: Path) -> None:
    path = folder / "costl.yaml"
    odd = random.choice(("folder", "settings", "override"))
    settings = Config().to_dict() if odd == "settings" else FOLDER
    path.write_bytes(odd_yaml(random, settings, odd in ("folder", "settings")))
    value = random.choice(SNIPPETS) if odd == "override" else "1.5"
    attempt_all(
        lambda: load_config(load_config(path).to_dict()),
        lambda: load_config(read_settings(folder).train) if odd != "settings" else None,
        lambda: stated_fps([path]),
        lambda: load_config(overrides=[f"loss.focal={value}", f"data.domain={value if odd == 'override' else 'BK'}"]),
    )


def runs(random: Random, folder: Path) -> None:
    run = folder / "runs" / "one"
    run.mkdir(parents=True, exist_ok=True)
    (run / "best.safetensors").touch()
    (run / "config.yaml").write_text(Config().to_yaml(), encoding="utf-8")
    (run / "run.json").write_bytes(as_json(random, odd_json(random, RUN)))
    attempt_all(lambda: read_run(run).resolved_config, lambda: newest_run(folder / "runs"))


def odd_lines(random: Random, row: dict) -> str:
    """A JSONL text of one or three rows, most of them changed."""
    rows = [
        row | {"qid": qid} if random.random() < 0.3 else odd_json(random, row) for qid in range(random.choice((1, 3)))
    ]
    text = b"\n".join(as_json(random, each) for each in rows)
    if random.random() < 0.3:
        text = damaged(random, text, text)
    return text.decode(errors="replace")


def odd_yaml(random: Random, whole: dict, odd: bool) -> bytes:
    """Settings as YAML: with changed values, with special YAML syntax in places, or with damaged bytes."""
    if not odd:
        return yaml.safe_dump(whole, sort_keys=False).encode()
    text = yaml.safe_dump(odd_json(random, whole) if random.random() < 0.5 else whole, sort_keys=False)
    for _ in range(random.choice((0, 1, 1, 3))):
        offsets = [offset for offset, letter in enumerate(text) if letter in ":-\n"] or [0]
        start = random.choice(offsets)
        end = text.find("\n", start + 1) if random.random() < 0.7 else start + 1
        text = f"{text[: start + 1]} {random.choice(SNIPPETS)}{text[end:] if end >= 0 else ''}"
    content = text.encode(errors="surrogatepass")
    return damaged(random, content, content) if random.random() < 0.3 else content


class Foreign(Exception):
    """A reader raised an error other than CostlError."""


def attempt_all(*reads: Callable[[], object]) -> None:
    """Calls every reader, even after a refusal; raises the first refusal at the end."""
    refusals = []
    for read in reads:
        try:
            read()
        except CostlError as error:
            assert str(error).strip(), "a refusal without a message"
            refusals.append(error)
        except Exception as error:
            raise Foreign(f"{type(error).__name__}: {error}"[:300]) from error
    if refusals:
        raise refusals[0]


def fuzz(read: Read, seeds: range, folder: Path) -> tuple[Counter[str], list[str]]:
    counts = Counter[str]()
    problems: list[str] = []
    for seed in seeds:
        try:
            read(Random(seed), folder)
            counts["read"] += 1
        except CostlError:
            counts["refused"] += 1
        except Foreign:
            counts["foreign"] += 1
            problems.append(f"seed {seed}: {traceback.format_exc(limit=-6)[-1500:]}")
    return counts, problems


KINDS = pytest.mark.parametrize("read", [annotations, predictions, annotation_bytes, settings_files, runs])


@pytest.mark.promise(9)
@KINDS
def test_an_invalid_text_is_read_or_refused(read, tmp_path, monkeypatch, report_figure):
    monkeypatch.chdir(tmp_path)
    counts, problems = fuzz(read, range(FEW // 5 if read in (settings_files, predictions) else FEW), tmp_path)
    report_figure(f"{read.__name__}: {counts.total()} texts, {dict(counts)}")
    assert not problems, "\n\n".join(problems[:3])
    assert counts["refused"] and counts["read"] and not (tmp_path / "pwned").exists()


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
@KINDS
def test_fifty_thousand_invalid_texts_are_read_or_refused(read, tmp_path, monkeypatch, report_figure):
    monkeypatch.chdir(tmp_path)
    counts, problems = fuzz(read, range(MANY // 5 if read in (settings_files, predictions) else MANY), tmp_path)
    report_figure(f"{read.__name__}: {counts.total()} texts, {dict(counts)}")
    assert not problems, f"{len(problems)} problems\n" + "\n\n".join(problems[:10])
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", [BILLION_LAUGHS, MERGES, "a: &a [*a]\n", "a: &a {b: {<<: *a}}\n"])
def test_yaml_aliases_that_expand_beyond_memory_are_refused(text, tmp_path):
    path = tmp_path / "laughs.yaml"
    path.write_text(text)
    with pytest.raises(CostlError, match=r"(more than 100000 values when|found an alias \(\*name\) inside)"):
        load_config(path)
