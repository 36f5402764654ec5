"""YAML 1.2 as people write it: numbers, texts and booleans, quoted and unquoted, read and written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.pipeline.formats.strict_yaml import is_number, read_yaml, write_yaml

# A text and its value: the numbers of YAML 1.2. Everything else is a text, which the setting refuses.
READ = {
    "1e-4": 1e-4,
    "5e-4": 5e-4,
    "1E5": 1e5,
    "1e+3": 1000.0,
    "-2.5e-3": -0.0025,
    "1.0e-05": 1e-5,
    ".5": 0.5,
    "-.5": -0.5,
    "1.": 1.0,
    "+3": 3,
    "-0": 0,
    "0x10": 16,
    "0o17": 15,
    "012": 12,  # ten in YAML 1.1
    ".inf": math.inf,
    "-.inf": -math.inf,
    "1e400": math.inf,
    "true": True,
    "FALSE": False,
    "": None,
    "~": None,
    "null": None,
    "'1e-4'": "1e-4",
    '"20"': "20",
    "'true'": "true",
    "1_000": "1_000",
    "1,000": "1,000",
    "1:30": "1:30",  # ninety in YAML 1.1
    "0b11": "0b11",
    "0x": "0x",
    "1e": "1e",
    "e5": "e5",
    ".": ".",
    "1.2.3": "1.2.3",
    "2026-01-31": "2026-01-31",
    "inf": "inf",
    "nan": "nan",
    "Infinity": "Infinity",
    "yes": "yes",
    "no": "no",
    "NO": "NO",
    "on": "on",
    "off": "off",
    "[1, 2e1, x]": [1, 20.0, "x"],
    "{a: 1e-3}": {"a": 1e-3},
    "{a: &x {b: 1}, c: {<<: *x, d: 2}}": {"a": {"b": 1}, "c": {"b": 1, "d": 2}},
}


@pytest.mark.parametrize("text", READ)
def test_a_plain_value_is_read_as_yaml_1_2_defines_it(text):
    value = read_yaml(text)
    assert value == READ[text] and type(value) is type(READ[text])
    assert is_number(text) == (type(value) in (int, float))


def test_not_a_number_is_written_with_a_dot():
    assert all(math.isnan(read_yaml(text)) for text in (".nan", ".NaN", ".NAN"))


@pytest.mark.parametrize("text", ["a: 1\na: 2", "{a: {b: 1, b: 2}}"])
def test_a_key_given_twice_is_refused(text):
    with pytest.raises(ValueError, match="is given twice"):
        read_yaml(text)


def test_only_plain_values_are_accepted():
    for text in ("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!what 1"):
        with pytest.raises(ValueError):
            read_yaml(text)


@settings(deadline=None)
@given(st.floats(allow_nan=False))
def test_every_float_is_read_back_exactly(value):
    assert read_yaml(write_yaml({"x": value})) == {"x": value}
    read_back = read_yaml(repr(value)) if math.isfinite(value) else value
    assert read_back == value and type(read_back) is float and math.copysign(1, read_back) == math.copysign(1, value)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(list(READ))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)
@given(st.dictionaries(texts, st.lists(scalars | texts, max_size=3) | scalars | texts, max_size=4))
def test_every_written_value_is_read_back(value):
    read_back = read_yaml(write_yaml(value))
    assert read_back == value and str(read_back) == str(value)  # str tells 1 from 1.0 and from True


def test_an_integer_too_large_to_print_is_refused():
    assert read_yaml("0x" + "f" * 1024) == 2**4096 - 1
    with pytest.raises(ValueError, match="found a number too large"):
        read_yaml("0x1" + "0" * 1024)


@pytest.mark.parametrize("opening", ["[", "{a: ", "[\n"])
def test_a_hundred_brackets_may_be_nested(opening):
    """PyYAML takes more than half a second for a thousand on one line."""
    closing = "}" if opening.startswith("{") else "]"
    assert str(read_yaml(opening * 100 + closing * 100)).count(opening[0]) == 100
    for text in (opening * 101 + closing * 101, opening * 20_000, "- " * 20_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            read_yaml(text)
