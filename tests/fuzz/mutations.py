"""Random changes of YAML and JSON values, of text and of bytes, each from a random generator alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**32, 2**63, 2**64, 10**40, -(10**40), "", " ", "none", "null", "0x1F", "1e4", "9" * 400, "a" * 10_000),
    *("..", "../..", "/etc/passwd", "~root", "C:\\x", "file:///etc/passwd", "s3://bucket/key", "a\0b", "\x1b[31m"),
    *("<script>alert(1)</script>", "=1+1", "$(id)", "`id`", "{0}", "%s%n", "\u202eevil", "\ud7ff", "naïve", "🐄"),
    *([], {}, [[]], [{}], {"": ""}, {"kind": None}, [None], [0] * 300, {"a": {"b": {"c": {}}}}),
)
"""What values are replaced by."""
TOKENS = (
    *(b"\0", b"\t", b"\r", b"\n", b" ", b"\xff", b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8", b"\x1b[2J", b"\x7f"),
    *(b"[", b"]", b"{", b"}", b":", b": ", b"- ", b"? ", b",", b"|", b">", b"'", b'"', b"#", b"%", b"@", b"`", b"!"),
    *(b"&a ", b"*a", b"<<: *a\n", b"<<: [*a, *a]\n", b"!!python/object/apply:os.system [id]", b"!!binary x", b"---\n"),
    *(b"...\n", b"%YAML 9.9\n", b"!!set {a}", b"!!int x", b"!!timestamp 2000", b"0o17", b"0b1", b"0xfff", b"1:2:3"),
    *(
        b"1e999",
        b"-",
        b"1" * 5000,
        b"[" * 2000,
        b"{a: " * 500,
        b"- " * 2000,
        b"NaN",
        b"Infinity",
        b"1e-9999",
        b"\\u0000",
    ),
)
"""What is inserted into text and bytes."""
NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
"""What lengths and offsets in binary files are replaced by."""


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys and indices to everything in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from places(inner, (*above, key))


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def mutated_value(original: Any, others: list[Any], random: Random) -> Any:
    """Return a copy of nested mappings and lists with one to four changes, some with parts of `others`."""
    value = copy.deepcopy(original)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        known = list(places(value))
        if not known:
            return value
        place = random.choice(known)
        owner, key = at(value, place[:-1]), place[-1]
        match random.randrange(8):
            case 0 | 1 | 2:
                owner[key] = copy.deepcopy(random.choice(VALUES))
            case 3:
                del owner[key]
            case 4:
                owner[key] = [owner[key]] if random.random() < 0.5 else {str(key): owner[key]}
            case 5:
                other = random.choice(others)
                owner[key] = copy.deepcopy(at(other, random.choice(list(places(other)) or [()])))
            case 6 if isinstance(owner, dict):
                new = random.choice([f"{key}s", str(key).upper(), "", "x" * 300, "kind", "<<", f"{key}.{key}", "\x1b"])
                owner[new] = owner.pop(key)
            case 6:
                owner.insert(key, copy.deepcopy(owner[key]))
            case _:
                if isinstance(number := owner[key], int | float):
                    owner[key] = random.choice([-number, number * 1000, number + 0.5, str(number), number * 10**9])
                else:
                    owner[key] = copy.deepcopy(at(value, random.choice(known)[:-1]))
    return value


def mutated_bytes(content: bytes, random: Random) -> bytes:
    """Return bytes with one to six of them, or short pieces, changed, removed, repeated or inserted."""
    out = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 6])):
        where, length = random.randrange(len(out) + 1), random.choice([1, 1, 2, 4, 8, 40, 300])
        match random.randrange(8):
            case 0:
                out[where : where + 1] = bytes([random.randrange(256)])
            case 1:
                del out[where : where + length]
            case 2:
                out[where:where] = random.choice(TOKENS)
            case 3:
                out[where:where] = out[where : where + length] * random.choice([1, 1, 2, 50])
            case 4 if random.random() < 0.3:
                del out[where:]
            case 5 | 6:
                width = random.choice([1, 2, 4, 8])
                number = random.choice(NUMBERS) % 256**width
                out[where : where + width] = number.to_bytes(width, random.choice(["little", "big"]))
            case _:
                for k in range(where, min(len(out), where + length)):
                    out[k] ^= 1 << random.randrange(8)
    return bytes(out)
