"""Damage from a seed: bytes flipped, cut, moved and spliced; values of JSON replaced by what nobody would write."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 48, (1 << 63) - 1, (1 << 64) - 1)
DEEP = "<deep>"  # stands for a nest that neither json.dumps nor copy could make
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
    """The content after one blow or a few; `donor` is another file that it may be spliced with."""
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5, 20))):
        if found:
            random.choice(BLOWS)(random, found, donor)
    return bytes(found)


def odd_value(random: Random) -> Any:
    """Something of any type."""
    return copy.deepcopy(random.choice(ODD))


def odd_json(random: Random, value: Any) -> Any:
    """A copy of a nest of dicts and lists in which one thing, or a few, are other than they were."""
    found = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        found = _changed_somewhere(random, found)
    return found


def as_json(random: Random, value: Any) -> bytes:
    """The text of a value as odd as its content: escaped or not, halves of surrogates left as they are, far too deep."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    depth = random.choice((100, 2000, 50_000))
    nest = "[" * depth + "]" * depth if random.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth
    return text.replace(json.dumps(DEEP), nest).encode(errors="surrogatepass")


def _changed_somewhere(random: Random, value: Any) -> Any:
    inside = isinstance(value, (dict, list)) and len(value) and random.random() < 0.85
    if not inside:
        return odd_value(random)
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    how = random.random()
    if how < 0.7:
        value[key] = _changed_somewhere(random, value[key])
    elif how < 0.8:
        del value[key]
    elif how < 0.9 and isinstance(value, dict):
        value[random.choice((str(key) + "s", str(key).upper(), "", "extra", "~tensor", "label"))] = odd_value(random)
    elif isinstance(value, dict):
        value[key] = copy.deepcopy(value[random.choice(list(value))])
    else:
        value.insert(key, copy.deepcopy(random.choice((value[key], odd_value(random)))))
    return value


# --- blows to bytes, in place -------------------------------------------------------------------------------------------


def _place(random: Random, found: bytearray) -> int:
    """Mostly where something stands: files of HDF5 are full of zeros that nobody reads."""
    for _ in range(20):
        place = random.randrange(len(found))
        if found[place] or random.random() < 0.02:
            return place
    return random.randrange(len(found))


def _flip(random: Random, found: bytearray, donor: bytes) -> None:
    found[_place(random, found)] ^= 1 << random.randrange(8)


def _byte(random: Random, found: bytearray, donor: bytes) -> None:
    found[_place(random, found)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _number(random: Random, found: bytearray, donor: bytes) -> None:
    width = random.choice((2, 4, 8))
    place = max(0, min(_place(random, found), len(found) - width)) // random.choice((1, width)) * 1
    number = random.choice((*NUMBERS, len(found), len(found) - 1, random.randrange(1, 1 << 20)))
    found[place : place + width] = (number % (1 << 8 * width)).to_bytes(width, "little")


def _cut(random: Random, found: bytearray, donor: bytes) -> None:
    if random.random() < 0.4:
        del found[random.randrange(len(found)) :]


def _zeros(random: Random, found: bytearray, donor: bytes) -> None:
    place, length = _place(random, found), random.choice((1, 8, 64, 512))
    found[place : place + length] = bytes(len(found[place : place + length]))


def _lose(random: Random, found: bytearray, donor: bytes) -> None:
    place = _place(random, found)
    del found[place : place + random.choice((1, 2, 8, 100))]


def _insert(random: Random, found: bytearray, donor: bytes) -> None:
    place = _place(random, found)
    found[place:place] = random.randbytes(random.choice((1, 2, 8, 100)))


def _splice(random: Random, found: bytearray, donor: bytes) -> None:
    length = random.choice((8, 64, 512, 4096))
    here, there = _place(random, found), random.randrange(max(1, len(donor)))
    if random.random() < 0.5:
        there = here
    found[here : here + length] = donor[there : there + length]


def _move(random: Random, found: bytearray, donor: bytes) -> None:
    length = random.choice((4, 8, 40, 512))
    one, other = _place(random, found), _place(random, found)
    found[other : other + length] = found[one : one + length]


BLOWS: tuple[Callable[[Random, bytearray, bytes], None], ...] = (
    *(_flip, _flip, _byte, _byte, _number, _number, _number, _cut, _zeros, _lose, _insert, _splice, _move),
)
