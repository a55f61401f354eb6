"""What ASE passes over in an extended XYZ file: what follows a blank line, keys, spellings."""

import io
import re
import shlex
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, open_with_compression
from numpy.typing import NDArray

from e3sparse.errors import DataError

_SPELLED = {"lattice": "Lattice", "properties": "Properties", "pbc": "pbc"}
"""Keys that give a structure its shape, in the spelling that ASE reads."""
_QUOTED = re.compile(r"""(?<==)\s*("[^"]*"|'[^']*'|\{[^}]*\}|\[[^\]]*\])""")
_KEY = re.compile(r"(?:^|\s)([^\s=]+)\s*=")


def without_blank_lines(path: Path) -> io.StringIO | None:
    """Return the text of an extended XYZ file without the blank lines between its frames.

    ASE takes the first of them for the end of the file.

    Returns
    -------
    StringIO or None
        None where there are none, or the file is of another format.

    Raises
    ------
    DataError
        If what stands after a blank line is no frame, or a frame gives a key twice.
    """
    try:
        if filetype(str(path)) != "extxyz":
            return None
    except (UnknownFileTypeError, OSError):
        return None
    with open_with_compression(str(path), "r") as file:
        try:
            if not any(not frame for _, frame in _frames(file, path)):
                return None
        except ValueError:  # ASE says what is wrong with it
            return None
    with open_with_compression(str(path), "r") as file:
        text = "".join(line for _, frame in _frames(file, path) for line in frame)
    return io.StringIO(text.lstrip("\ufeff"))


def is_extended_xyz(path: Path) -> bool:
    """Whether a file is extended XYZ that is not compressed, so that any frame is found at once."""
    if path.suffix not in (".xyz", ".extxyz") or not path.is_file():
        return False
    try:
        return bool(filetype(str(path)) == "extxyz")
    except (UnknownFileTypeError, OSError):
        return False


def other_encoding(path: Path) -> str:
    """Return the sentence on a text file that is not in UTF-8, with what makes it one."""
    code = "UTF-16" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
    name = shlex.quote(str(path))
    return f" It is no text in UTF-8: iconv -f {code} -t UTF-8 {name} > utf8.xyz makes it one."


def offsets(path: Path) -> NDArray[np.int64]:
    """Return at which byte each frame begins; none if it is no extended XYZ.

    Raises
    ------
    DataError
        If it is not in UTF-8, or damaged after the first frame.
    """
    found = array("q")
    with open(path, "rb") as file:
        lines = _Decoded(file)
        try:
            for _, frame in _frames(lines, path):
                if frame and not frame[0].lstrip().startswith("VEC"):
                    found.append(lines.position - sum(len(line.encode()) for line in frame))
        except UnicodeDecodeError as error:
            raise DataError(f"{path} cannot be read ({error}).{other_encoding(path)}") from None
        except ValueError as error:
            if not found:  # it is no such file at all, which ASE says when it reads it
                return np.array(found, dtype=np.int64)
            raise DataError(
                f"{path} cannot be read after {len(found):,} frames: {error}."
            ) from None
    return np.array(found, dtype=np.int64)


def structure_at(path: Path, offset: int) -> Atoms:
    """Return the structure whose frame begins at a byte of the file."""
    with open(path, "rb") as file:
        file.seek(offset)
        first = file.readline().decode("utf-8-sig")
        text = [first, *(file.readline().decode() for _ in range(int(first) + 1))]
        while (line := file.readline().decode()).lstrip().startswith("VEC"):
            text.append(line)
    atoms = ase.io.read(io.StringIO("".join(text)), format="extxyz")
    assert isinstance(atoms, Atoms)
    return atoms


class _Decoded:
    """Lines of a file, and how far into it they go."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.position = 0

    def readline(self) -> str:
        line = self.file.readline()
        self.position += len(line)
        return line.decode()


def _frames(file: "IO[str] | _Decoded", path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the lines of each frame, none for blank lines before a frame."""
    number, blank = 0, False
    while line := file.readline():
        number += 1
        if not line.strip():
            blank = True
            continue
        try:
            atoms = int(line.strip().lstrip("\ufeff"))
        except ValueError:
            if not blank:
                if line.lstrip().startswith("VEC"):
                    yield number, [line]
                    continue
                raise
            raise DataError(
                f"Line {number} of {path} follows a blank line and is no number of atoms: "
                f"{line.strip()[:60]!r}. ASE would pass over it and all that comes after. Remove "
                "what is no frame."
            ) from None
        if blank:
            yield number, []
        blank = False
        first, begun = number, [line]
        begun += [file.readline() for _ in range(atoms + 1)]
        _check_once(begun[1], f"Line {first + 1} of {path}")
        number += atoms + 1
        yield first, begun


def _check_once(header: str, where: str) -> None:
    keys = _KEY.findall(_QUOTED.sub("", header))
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise DataError(
            f"{where} gives '{twice[0]}' more than once, of which ASE reads the last. Leave the "
            "one that is meant."
        )


def check_spelling(atoms: Atoms, where: str) -> None:
    """Refuse a structure whose cell or columns ASE has not recognised for their spelling.

    Raises
    ------
    DataError
        If it carries something like `lattice=` or `PBC=`.
    """
    for key in atoms.info:
        meant = _SPELLED.get(key.lower())
        if meant is not None:
            raise DataError(
                f"{where} has '{key}=', which ASE does not read: the key is '{meant}', in this "
                "spelling. The structure would be taken for one without it."
            )
