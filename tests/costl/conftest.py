"""Fixtures for the tests of benchmarks: `costl prepare` as a command, and the folder of official files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.data.annotations import Query, parse_jsonl

ANNOTATIONS = Path(__file__).parents[3] / "shared" / "data" / "annotations"


@dataclass(frozen=True)
class Prepared:
    """The result of `costl prepare`: its exit code, both outputs and the folder it wrote."""

    code: int
    table: str
    messages: str
    out: Path

    @cached_property
    def splits(self) -> dict[str, list[Query]]:
        """The rows of every split written, read back."""
        files = sorted(self.out.glob("*.jsonl"))
        return {file.stem: parse_jsonl(file.read_text(encoding="utf-8"), file.name) for file in files}

    @property
    def report(self) -> dict:
        return json.loads((self.out / "report.json").read_text(encoding="utf-8"))

    def quirks(self, split: str) -> dict[str, int]:
        return self.report["splits"][split]["quirks"]


Prepare = Callable[..., Prepared]


@pytest.fixture
def run_prepare(tmp_path) -> Prepare:
    """`costl prepare ARGUMENTS --out OUT`."""

    def run(*arguments: object, out: str) -> Prepared:
        result = CliRunner().invoke(main, ["prepare", *map(str, arguments), "--out", str(tmp_path / out)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Prepared(result.exit_code, result.stdout, result.stderr, tmp_path / out)

    return run


@pytest.fixture(scope="module")
def no_final_report() -> Iterator[None]:
    """For tests of steps and weights: trainings in this process end without curves and without an evaluation."""
    from costl.training import report

    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_curves", "evaluate", "_zero_shot"):
            patch.setattr(report, name, lambda *_, **__: None)
        yield


@pytest.fixture
def prepare(run_prepare) -> Prepare:
    """`costl prepare NAME --annotations FOLDER ...`; without --videos among `more`, videos may be missing."""

    def run(name: str, annotations: Path, *more: object, out: str = "out") -> Prepared:
        missing = [] if "--videos" in more else ["--allow-missing-videos"]
        return run_prepare(name, "--annotations", annotations, *more, *missing, out=out)

    return run


@pytest.fixture
def official() -> Callable[[str], Path]:
    """The folder of the official files of a benchmark; skips the test if they are missing."""

    def find(name: str) -> Path:
        if not (ANNOTATIONS / name).is_dir():
            pytest.skip("the official annotations are missing")
        return ANNOTATIONS / name

    return find


def write_jsonl(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_qid(queries: Iterable[Query]) -> dict:
    return {query.qid: query for query in queries}


@pytest.fixture
def jsonl() -> Callable[..., Path]:
    """Writes rows as JSONL: `jsonl(path, row, ...)`."""
    return write_jsonl
