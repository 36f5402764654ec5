"""Does a test see it when something changes that mutmut leaves alone: a constant, a default, a property?

    python tests/crash/constants.py                     in all modules that mutmut changes
    python tests/crash/constants.py pipeline/grid.py    in this one

Changes one number after the other in a copy of the project, and runs the tests that mutmut runs (`[mutmut]` in setup.cfg). A
line for each change that no test saw, and one for each module. The exit code is 1 when there is any.
"""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py  # noqa: F401  (this and torch: what takes long, once for all)
import pytest
import torch  # noqa: F401
from breaking import LEFT_OUT, ROOT

OPERATORS = {ast.Add: (b"+", b"-"), ast.Sub: (b"-", b"+"), ast.Mult: (b"*", b"/"), ast.Div: (b"/", b"*")}


def main() -> int:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    modules = sys.argv[1:] or settings["mutmut"]["only_mutate"].split()
    tests = settings["mutmut"]["pytest_add_cli_args_test_selection"].split()
    with tempfile.TemporaryDirectory(prefix="costl-constants-") as place:
        copy = Path(place) / "costl"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if not passes(copy, tests):
            print("a test fails with nothing changed: see to that first")
            return 1
        return int(sum([unseen_in(copy / module, copy, tests) for module in modules]) > 0)


def unseen_in(path: Path, copy: Path, tests: list[str]) -> int:
    """Makes each change of a module by itself and runs the tests; how many changes they did not see."""
    source, total, unseen = path.read_bytes(), 0, 0
    tests = sorted(tests, key=lambda test: path.stem not in test)  # its own first
    for line, changed in changes(source):
        total += 1
        path.write_bytes(changed)
        if passes(copy, tests):
            unseen += 1
            print(f"  NOT SEEN: {path.name}:{line}: {changed.splitlines()[line - 1].decode().strip()}", flush=True)
    path.write_bytes(source)
    print(f"{path.relative_to(copy)}: {total - unseen} of {total} changes were seen", flush=True)
    return unseen


def passes(copy: Path, tests: list[str]) -> bool:
    """Runs the tests in a fork of this process, which has imported nothing of ours."""
    if not (child := os.fork()):
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = True
        with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
            os._exit(pytest.main(["-x", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-profile=mutation", *tests]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def changes(source: bytes) -> Iterator[tuple[int, bytes]]:
    """(number of the line, the whole module) with one number, truth value or operator changed."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in _outside_functions(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.lineno - 1] + (node.end_col_offset or 0)
            yield node.lineno, source[:begin] + repr(_other(node.value)).encode() + source[end:]
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            left, right = node.left, node.right
            begin, end = starts[(left.end_lineno or 0) - 1] + (left.end_col_offset or 0), starts[right.lineno - 1]
            between = slice(begin, end + right.col_offset)
            yield (
                node.lineno,
                source[:begin] + source[between].replace(*OPERATORS[type(node.op)]) + source[between.stop :],
            )


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """What mutmut does not look at: all but the bodies of functions without a decorator (and the decorators themselves)."""
    for child in ast.iter_child_nodes(node):
        if child in getattr(node, "decorator_list", ()):
            continue
        if isinstance(child, ast.FunctionDef) and not child.decorator_list:
            yield from ast.walk(child.args)
        else:
            yield child
            yield from _outside_functions(child)


def _other(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 1.25 or 1.0


if __name__ == "__main__":
    sys.exit(main())
