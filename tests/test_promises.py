"""The table of docs/reliability.md is right: every promise has tests, they exist, and they have its mark."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
PROMISES = range(1, 19)
LONGEST_NAME = 70  # characters of a test's name


def promise_rows() -> dict[int, list[str]]:
    """The cells of each row of the table, by the number of its promise."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0].isdecimal():
            rows[int(cells[0])] = cells
    return rows


@functools.cache
def promises_of_tests() -> dict[str, set[tuple[int, bool]]]:
    """The promises that each test, `file::name`, is marked with, and whether the test is long."""
    promises = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                numbers = [re.fullmatch(r"pytest\.mark\.promise\((\d+)\)", mark) for mark in marks]
                name = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                promises[name] = {(int(number[1]), "pytest.mark.long" in marks) for number in numbers if number}
    return promises


def test_the_table_has_a_row_for_each_promise_with_what_keeps_it():
    assert list(promise_rows()) == list(PROMISES)
    for number, (_, promise, how, tests, _) in promise_rows().items():
        assert promise and how and tests, number
        for module in re.findall(r"`((?:pipeline|costl)/[\w/]+\.py|cli\.py)`", how):
            assert (ROOT / module).is_file(), module


@pytest.mark.parametrize("number", PROMISES)
def test_every_test_named_for_a_promise_exists_and_is_marked_with_it(number):
    names = re.findall(r"`(tests/[\w/]+\.py::\w+)`", promise_rows()[number][3])
    assert names
    for name in names:
        assert name in promises_of_tests(), f"{name}: no such test"
        assert number in {promise for promise, _ in promises_of_tests()[name]}, f"{name}: not marked with {number}"


def test_every_promise_has_a_test_that_is_not_long():
    tested = {number for marks in promises_of_tests().values() for number, is_long in marks if not is_long}
    assert tested == set(PROMISES)


def test_every_promise_is_broken_on_purpose_somewhere(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "crash"))
    import breaking

    assert {one.promise for one in breaking.BREAKS} == set(PROMISES)
    for one in breaking.BREAKS:
        assert (ROOT / one.file).read_text(encoding="utf-8").count(one.old) == 1, f"{one.what}: {one.file} has changed"
        assert one.test in promises_of_tests(), one.test


def test_no_test_name_is_longer_than_70_characters():
    names = {name.rpartition("::")[2] for name in promises_of_tests()}
    assert [name for name in sorted(names) if len(name) > LONGEST_NAME] == []
