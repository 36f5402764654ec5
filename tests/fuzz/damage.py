"""Seeded damage: flipped, cut, moved and spliced bytes, and JSON in which some values are replaced by invalid ones."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 48, (1 << 63) - 1, (1 << 64) - 1)
DEEP = "<deep>"  # replaced by a nesting too deep for json.dumps and copy
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e-320, 1e308, -1e308, 2**31, 2**63, 2**64, -(10**30), 10**400),
    *(math.nan, math.inf, -math.inf, 1e16, 3.0000000001),
    *(
        "",
        " ",
        "0",
        "1",
        "nan",
        "\0",
        "a\0b",
        "\ud800",
        "\udfff",
        "é",
        "e\u0301",
        "\u2028",
        "\u202e",
        "☃" * 300,
        "a" * 5000,
    ),
    *(
        DEEP,
        "../../etc/passwd",
        "/etc/passwd",
        "~nobody/x",
        "CON",
        "ok",
        "ViT-B-32",
        "./\0",
        "1:2:3",
        "0x" + "f" * 5000,
    ),
    *([], {}, [[]], [{}], {"": None}, [None], [0, 1], [0.0, 1.0, 2.0], [[0, 1]], [[1e308, -1e308, 1]], ["a"] * 40),
)


def damaged(random: Random, content: bytes, donor: bytes) -> bytes:
    """A copy of the content after one change or a few; bytes of `donor`, another file, may be spliced in."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5, 20))):
        if data:
            random.choice(CHANGES)(random, data, donor)
    return bytes(data)


def odd_value(random: Random) -> Any:
    """An unusual value of any type."""
    return copy.deepcopy(random.choice(ODD))


def odd_json(random: Random, value: Any) -> Any:
    """A copy of nested dicts and lists with one change or a few."""
    changed = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        changed = _change_somewhere(random, changed)
    return changed


def as_json(random: Random, value: Any) -> bytes:
    """The value as JSON text: escaped or not, with unpaired surrogates, and with a deep nesting in place of DEEP."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    depth = random.choice((100, 2000, 50_000))
    nest = "[" * depth + "]" * depth if random.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth
    return text.replace(json.dumps(DEEP), nest).encode(errors="surrogatepass")


def _change_somewhere(random: Random, value: Any) -> Any:
    descend = isinstance(value, (dict, list)) and len(value) and random.random() < 0.85
    if not descend:
        return odd_value(random)
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    kind = random.random()
    if kind < 0.7:
        value[key] = _change_somewhere(random, value[key])
    elif kind < 0.8:
        del value[key]
    elif kind < 0.9 and isinstance(value, dict):
        value[random.choice((str(key) + "s", str(key).upper(), "", "extra", "~tensor", "label"))] = odd_value(random)
    elif isinstance(value, dict):
        value[key] = copy.deepcopy(value[random.choice(list(value))])
    else:
        value.insert(key, copy.deepcopy(random.choice((value[key], odd_value(random)))))
    return value


# Changes to bytes, in place


def _offset(random: Random, data: bytearray) -> int:
    """Mostly the offset of a byte other than zero, since HDF5 files are full of unused zeros."""
    for _ in range(20):
        offset = random.randrange(len(data))
        if data[offset] or random.random() < 0.02:
            return offset
    return random.randrange(len(data))


def _flip(random: Random, data: bytearray, donor: bytes) -> None:
    data[_offset(random, data)] ^= 1 << random.randrange(8)


def _byte(random: Random, data: bytearray, donor: bytes) -> None:
    data[_offset(random, data)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _number(random: Random, data: bytearray, donor: bytes) -> None:
    width = random.choice((2, 4, 8))
    offset = max(0, min(_offset(random, data), len(data) - width)) // random.choice((1, width))
    number = random.choice((*NUMBERS, len(data), len(data) - 1, random.randrange(1, 1 << 20)))
    data[offset : offset + width] = (number % (1 << 8 * width)).to_bytes(width, "little")


def _cut(random: Random, data: bytearray, donor: bytes) -> None:
    if random.random() < 0.4:
        del data[random.randrange(len(data)) :]


def _zeros(random: Random, data: bytearray, donor: bytes) -> None:
    offset = _offset(random, data)
    length = random.choice((1, 8, 64, 512))
    data[offset : offset + length] = bytes(len(data[offset : offset + length]))


def _delete(random: Random, data: bytearray, donor: bytes) -> None:
    offset = _offset(random, data)
    del data[offset : offset + random.choice((1, 2, 8, 100))]


def _insert(random: Random, data: bytearray, donor: bytes) -> None:
    offset = _offset(random, data)
    data[offset:offset] = random.randbytes(random.choice((1, 2, 8, 100)))


def _splice(random: Random, data: bytearray, donor: bytes) -> None:
    length = random.choice((8, 64, 512, 4096))
    target = _offset(random, data)
    source = random.randrange(max(1, len(donor)))
    if random.random() < 0.5:
        source = target
    data[target : target + length] = donor[source : source + length]


def _move(random: Random, data: bytearray, donor: bytes) -> None:
    length = random.choice((4, 8, 40, 512))
    source = _offset(random, data)
    target = _offset(random, data)
    data[target : target + length] = data[source : source + length]


CHANGES: tuple[Callable[[Random, bytearray, bytes], None], ...] = (
    *(_flip, _flip, _byte, _byte, _number, _number, _number, _cut, _zeros, _delete, _insert, _splice, _move),
)
