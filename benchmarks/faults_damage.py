"""What becomes of files: bytes, JSON, safetensors headers, whole files; one damage a try.

Each damage is a function of the files that it may touch, of other saves of the same shape, and of
a random number generator; it changes one of the files in place.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import yaml

Damage = Callable[[list[Path], Sequence[Path], Random], None]

HUGE = (2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 2**65 + 3, 10**30)
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 2**63, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"),
    "", "x", "../..", "/etc/passwd", "\ud800", "[/]", "\0", [], {}, [[]], {"": None},
)  # fmt: skip
_MARK = "e3sparse-damage"


def flip(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Change one to four bytes."""
    path = _some(files, rng)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 4])):
        content[rng.randrange(len(content))] ^= rng.randint(1, 255)
    path.write_bytes(content)


def character(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Change a digit into another one, or a letter, which most parsers read on over."""
    path = _some(files, rng)
    content = bytearray(path.read_bytes())
    alike = rng.choice([b"0123456789", b"0123456789", b"abcdefghijklmnopqrstuvwxyz"])
    places = [n for n, byte in enumerate(content) if byte in alike] or [0]
    content[rng.choice(places)] = rng.choice(alike)
    path.write_bytes(content)


def cut(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Cut a file off, often near its end or its beginning."""
    path = _some(files, rng)
    size = path.stat().st_size
    near = min(size, 64)
    keep = rng.choice([rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)])
    os.truncate(path, keep)


def zeros(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Overwrite a run of bytes with zeros, as a disk does that lost a block."""
    path = _some(files, rng)
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    length = rng.choice([1, 8, 64, 512, 4096, len(content)])
    part = content[start : start + length]
    content[start : start + length] = bytes(len(part))
    path.write_bytes(content)


def swap(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Put a file of another save in the place of one, as two writes that met do."""
    path = rng.choice(files)
    twins = [other / path.name for other in others if (other / path.name).is_file()]
    twins += [f for other in others for f in other.rglob(path.name) if f.is_file()]
    if twins:
        shutil.copy(rng.choice(twins), path)
    else:
        path.unlink()


def missing(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Take files away, or put a folder in the place of one."""
    for path in rng.sample(files, rng.choice([1, 1, len(files)])):
        path.unlink()
        if rng.random() < 0.3:
            path.mkdir()


def link(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Put a link in the place of a file: dangling, to itself, a folder, another; or a pipe."""
    path = rng.choice(files)
    path.unlink()
    kind = rng.choice(["dangling", "loop", "folder", "other", "device", "pipe"])
    if kind == "pipe":
        os.mkfifo(path)
        return
    targets = {
        "dangling": "nothing-here",
        "loop": path.name,
        "folder": ".",
        "other": str(rng.choice(others) / path.name),
        "device": "/dev/null",
    }
    path.symlink_to(targets[kind])


def value(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Give one value of a document another, of another type or nearly the same."""
    path, document = _document(files, rng)
    places = list(_places(document))
    holder, key = rng.choice(places)
    holder[key] = _other_value(holder[key], rng)
    _write(path, document)


def key(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Rename, remove or add a key of a document, or exchange two values."""
    path, document = _document(files, rng)
    holder = rng.choice([h for h, _ in _places(document) if isinstance(h, dict)] or [{}])
    names = list(holder)
    do = rng.choice(["rename", "remove", "add", "exchange"])
    name = rng.choice(names) if names else ""
    if do == "add" or not names:
        holder[rng.choice(["x", "", "Format_Version", "layers", "digest"])] = rng.choice(VALUES)
    elif do == "exchange":
        other = rng.choice(names)
        holder[name], holder[other] = holder[other], holder[name]
    else:
        taken = holder.pop(name)
        if do == "rename":
            holder[f"{name}x" if isinstance(name, str) else -1] = taken
    _write(path, document)


def shape(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Put a number of 2³¹ or more where a document has a shape, or any integer."""
    path, document = _document(files, rng)
    every = [(h, k) for h, k in _places(document) if type(h[k]) is int]
    shapes = [
        (h["shape"], n)
        for h, k in _places(document)
        if k == "shape" and isinstance(h[k], list)
        for n in range(len(h[k]))
    ]
    chosen = shapes if shapes and rng.random() < 0.8 else every
    if not chosen:
        return zeros(files, others, rng)
    holder, place = rng.choice(chosen)
    holder[place] = rng.choice([*HUGE, holder[place] + 2**64])
    return _write(path, document)


def duplicate(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Give a key of a JSON document a second value, before or after its own."""
    path, document = _document(files, rng)
    holders = [h for h, _ in _places(document) if isinstance(h, dict)]
    holder = rng.choice(holders)
    name = rng.choice(list(holder))
    second = _other_value(holder[name], rng)
    if rng.random() < 0.5:
        holder[_MARK] = second
    else:
        items = list(holder.items())
        holder.clear()
        holder.update({_MARK: second, **dict(items)})
    _write(path, document, {json.dumps(_MARK): json.dumps(str(name))})


def deep(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Nest a value of a document as deep as no parser likes."""
    path, document = _document(files, rng)
    holder, place = rng.choice(list(_places(document)))
    holder[place] = _MARK
    depth = rng.choice([200, 1000, 5000, 100_000])
    left, right = rng.choice([("[", "]"), ('{"a":', "}")])
    inner = "1" if left != "[" else ""
    _write(path, document, {json.dumps(_MARK): left * depth + inner + right * depth})


def header(files: list[Path], others: Sequence[Path], rng: Random) -> None:
    """Edit the header of a safetensors file: shapes, offsets, types, names, or exchange tensors."""
    path = rng.choice([p for p in files if p.suffix == ".safetensors"] or files)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        tensors = json.loads(content[8 : 8 + length])
    except ValueError:
        return flip([path], others, rng)
    names = [name for name in tensors if name != "__metadata__"]
    entry = tensors[rng.choice(names)]
    do = rng.choice(["shape", "offsets", "dtype", "rename", "exchange", "exchange", "length"])
    if do == "shape":
        entry["shape"] = rng.choice([[2**64], [2**63, 2], [-1], [0], [2**32, 2**32], ["1"], None])
    elif do == "offsets":
        entry["data_offsets"] = rng.choice([[0, 2**64], [8, 0], [0, 2**63], [0], [0, 0]])
    elif do == "dtype":
        entry["dtype"] = rng.choice(["F32", "I64", "I32", "F16", "BF16", "BOOL", "F8_E4M3", "Q"])
    elif do == "rename":
        name = rng.choice(names)
        tensors[rng.choice([name + "x", "x", "statistics/x"])] = tensors.pop(name)
    elif do == "exchange":
        like = [n for n in names if tensors[n]["shape"] == entry["shape"]]
        one, two = rng.choice(like), rng.choice(like)
        tensors[one], tensors[two] = tensors[two], tensors[one]
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    said = rng.choice([2**64 - 1, 2**40, 0, 7]) if do == "length" else len(text)
    path.write_bytes(said.to_bytes(8, "little") + text + content[8 + length :])
    return None


DAMAGES: dict[str, Damage] = {
    "bytes flipped": flip,
    "character changed": character,
    "cut off": cut,
    "run of zeros": zeros,
    "file of another save": swap,
    "file missing": missing,
    "link or pipe": link,
    "value edited": value,
    "key edited": key,
    "shape of 2³¹ or more": shape,
    "key twice": duplicate,
    "deep nesting": deep,
    "tensor header": header,
}


def _some(files: list[Path], rng: Random) -> Path:
    return rng.choice([path for path in files if path.stat().st_size])


def _document(files: list[Path], rng: Random) -> tuple[Path, Any]:
    path = rng.choice([p for p in files if p.suffix in (".json", ".yaml")])
    text = path.read_text(encoding="utf-8")
    return path, json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def _write(path: Path, document: Any, replaced: dict[str, str] | None = None) -> None:
    text = json.dumps(document, indent=1)  # which is YAML too
    for mark, by in (replaced or {}).items():
        text = text.replace(mark, by, 1)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a document with each key or index in it."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for name in keys:
        yield node, name
        if isinstance(node[name], dict | list):
            yield from _places(node[name])


def _other_value(old: Any, rng: Random) -> Any:
    """Return something nearly the same, or something altogether different."""
    if rng.random() < 0.5:
        return deepcopy(rng.choice(VALUES))
    if isinstance(old, bool) or old is None:
        return not old
    if isinstance(old, int | float):
        return rng.choice([old + 1, -old, old * (1 + 1e-6), 2 * old])
    if isinstance(old, str):
        return rng.choice([old + "x", old[:-1], old.upper(), old[::-1]])
    if isinstance(old, list):
        return rng.choice([old[:-1], old + old[:1], old[::-1]])
    return dict(list(old.items())[:-1])
