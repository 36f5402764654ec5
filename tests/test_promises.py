"""The table of docs/reliability.md is true: every promise has tests, they exist, and they are marked with its number."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
PROMISES = range(1, 19)


def rows() -> dict[int, list[str]]:
    """The cells of every row of the table, by the number of its promise."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0].isdecimal():
            found[int(cells[0])] = cells
    return found


@functools.cache
def marked() -> dict[str, set[tuple[int, bool]]]:
    """`file::name` of every test: the promises it is marked with, and whether it is a long one."""
    found: dict[str, set[tuple[int, bool]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                numbers = [re.fullmatch(r"pytest\.mark\.promise\((\d+)\)", mark) for mark in marks]
                found[f"{path.relative_to(ROOT).as_posix()}::{node.name}"] = {
                    (int(number[1]), "pytest.mark.long" in marks) for number in numbers if number
                }
    return found


def test_the_table_has_a_row_for_each_promise_with_what_keeps_it():
    assert list(rows()) == list(PROMISES)
    for number, (_, promise, how, tests, _) in rows().items():
        assert promise and how and tests, number
        for module in re.findall(r"`((?:pipeline|costl)/[\w/]+\.py|cli\.py)`", how):
            assert (ROOT / module).is_file(), module


@pytest.mark.parametrize("number", PROMISES)
def test_every_test_named_for_a_promise_exists_and_is_marked_with_it(number):
    named, known = re.findall(r"`(tests/[\w/]+\.py::\w+)`", rows()[number][3]), marked()
    assert named
    for name in named:
        assert name in known, f"{name}: no such test"
        assert number in {promise for promise, _ in known[name]}, f"{name}: not marked with promise {number}"


def test_every_promise_has_a_test_that_is_no_long_one():
    kept = {number for marks in marked().values() for number, long in marks if not long}
    assert kept == set(PROMISES)


def test_every_promise_is_broken_on_purpose_somewhere(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "crash"))
    import breaking

    assert {one.promise for one in breaking.BREAKS} == set(PROMISES)
    known = marked()
    for one in breaking.BREAKS:
        assert (ROOT / one.file).read_text(encoding="utf-8").count(one.old) == 1, f"{one.what}: {one.file} has changed"
        assert one.test in known, one.test
