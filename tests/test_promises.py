"""docs/reliability.md is right: every promise names what keeps it, and lists all tests that are marked with its number.

    python tests/test_promises.py        writes these lists into the page
"""

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


def sections() -> dict[int, str]:
    """The text under the heading of each promise, by its number."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^### (\d+)\. .*?\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
    return {int(number): text for number, text in found}


def list_of_tests(number: int) -> str:
    """The tests that are marked with this promise as a Markdown list, one line for each file."""
    names: dict[str, list[str]] = {}
    for test, promises in promises_of_tests().items():
        if number in {promise for promise, _ in promises}:
            path, _, name = test.partition("::")
            names.setdefault(path, []).append(f"`{name}`")
    lines = [f"- `{path}`: {', '.join(tests)}" for path, tests in names.items()]
    return "\n".join(["*Tests:*", "", *lines, "", ""])


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


def test_every_promise_has_a_heading_and_names_what_keeps_it():
    assert list(sections()) == list(PROMISES)
    for number, text in sections().items():
        how = text.partition("*How:*")[2].partition("*Measured:*")[0]
        modules = re.findall(r"`((?:pipeline|costl)/[\w/]+\.py)`", how)
        assert modules, number
        for module in modules:
            assert (ROOT / module).is_file(), module


@pytest.mark.parametrize("number", PROMISES)
def test_the_page_lists_exactly_the_tests_marked_with_a_promise(number):
    listed = sections()[number].partition("*Tests:*")
    assert "".join(listed[1:]) == list_of_tests(number), "run: python tests/test_promises.py"


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


def write_lists() -> None:
    """Replaces the list of tests under every promise by that of the markers."""
    page = PAGE.read_text(encoding="utf-8")
    for number, text in sections().items():
        page = page.replace(text, text.partition("*Tests:*")[0] + list_of_tests(number))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write_lists()
