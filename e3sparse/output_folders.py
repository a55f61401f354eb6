"""Folders that e3sparse writes, and which files in them are its own.

Such a folder has a file that says so and lists what was written. Only what is on that list is ever
removed: whatever else lies in the folder is somebody's.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from e3sparse.errors import ConfigError
from e3sparse.files import LEFTOVERS, replacing


class Listing(BaseModel):
    """What the file of an output folder holds.

    Attributes
    ----------
    files
        Names that were or may be written, relative.
    digests
        SHA-256 of those that will not change any more.
    """

    model_config = ConfigDict(extra="ignore")

    written_by: str
    format_version: int = Field(1, ge=1)
    files: list[str] = Field(default_factory=list)
    digests: dict[str, str] = Field(default_factory=dict)


L = TypeVar("L", bound=Listing)


def write_listing(folder: Path, name: str, listing: Listing) -> None:
    """Write the listing of a folder, which is made if it does not exist."""
    with replacing(folder / name) as temporary:
        temporary.write_text(listing.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_listing(folder: Path, name: str, kind: type[L]) -> L | None:
    """Read the listing of a folder; None if it has none.

    Raises
    ------
    ConfigError
        If the file is damaged, or lists what is not in the folder.
    """
    path = folder / name
    if path.exists() and not path.is_file():  # to read from a pipe is to wait for somebody
        raise ConfigError(f"{path} is no file. Put the original back, or give another folder.")
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}).") from None
    try:
        listing = kind.model_validate_json(text)
    except ValidationError:
        raise ConfigError(
            f"{path} is damaged, so that it cannot be told which files in {folder} are e3sparse's: "
            "give another --out."
        ) from None
    for file in listing.files:
        parts = PurePosixPath(file).parts
        if not parts or PurePosixPath(file).is_absolute() or ".." in parts:
            raise ConfigError(
                f"{path} lists '{file}', which is not in the folder: it was not written by "
                "e3sparse. Give another --out."
            )
    return listing


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def intact(folder: Path, name: str, file: str) -> Path:
    """Return the path of a file of an output folder, if it is what was written.

    Raises
    ------
    ConfigError
        If the listing knows of other contents, or it is no file.
    """
    path = folder / file
    listing = read_listing(folder, name, Listing)
    written = listing.digests.get(file) if listing is not None else None
    if not path.is_file() and (written is not None or path.exists()):
        raise ConfigError(f"{path} is missing, or is no file. Put the original back.")
    if written is not None and digest(path) != written:
        raise ConfigError(
            f"{path} is not what {listing.written_by if listing else 'e3sparse'} wrote: it was "
            "changed or damaged since, or is a file of another run. Put the original back."
        )
    return path


def check_output(
    folder: Path, name: str, what: str, inputs: Mapping[str, Path], *, overwrite: bool
) -> None:
    """Refuse to write into a folder where that could cost somebody a file; nothing is changed.

    Parameters
    ----------
    folder
        Where the output is to go.
    name
        Of the file with the listing.
    what
        What the folder has to be, such as `"a run folder"`.
    inputs
        The files that are read, by what the user calls them (`"--train"`).
    overwrite
        Whether an earlier output may be replaced.

    Raises
    ------
    ConfigError
        Naming what stands in the way.
    """
    if folder.is_symlink():
        raise ConfigError(
            f"{folder} is a symbolic link, to {os.readlink(folder)}: give the folder itself as "
            "--out."
        )
    full = folder.resolve()  # `new/..` does not exist, and yet is the folder around it
    _check_place(folder, full)
    if not full.exists() or (full.is_dir() and not any(full.iterdir())):
        return
    if not full.is_dir():
        raise ConfigError(f"{folder} is a file: give another --out.")
    listing = read_listing(full, name, Listing)
    if listing is not None and not overwrite:
        raise ConfigError(f"{folder} exists. Give another --out, or --overwrite to replace it.")
    here = Path.cwd().resolve()
    if full == here or full in here.parents:
        raise ConfigError(
            f"{folder} is the folder that you are in, or holds it, so --overwrite leaves it alone: "
            "give another --out."
        )
    for flag, path in inputs.items():
        if full in path.resolve().parents:
            raise ConfigError(
                f"{flag} {path} lies in {folder}, which --overwrite would replace: give another "
                "--out, or move the file."
            )
    if listing is None:
        raise ConfigError(
            f"{folder} exists and is not {what} of e3sparse: it has no {name}, which lists the "
            "files that --overwrite may remove, as versions before 0.2 wrote none. Give another "
            "--out, or move it away."
        )


def _check_place(folder: Path, full: Path) -> None:
    """Refuse a folder that could not be made, or written into, when everything is done."""
    there = next(path for path in (full, *full.parents) if path.exists())
    if there != full and not there.is_dir():
        raise ConfigError(
            f"{there} is a file, so that {folder} cannot be made: give another --out."
        )
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{there} may not be written into (no permission, or a read-only file system): give "
            "another --out."
        )


def remove_listed(folder: Path, name: str, listing: Listing) -> None:
    """Remove what a listing names, and folders that this leaves empty; links are not followed."""
    for file in listing.files:
        path = folder / file
        if not _through_link(folder, path) and (path.is_symlink() or path.is_file()):
            path.unlink()
    for leftover in folder.rglob(LEFTOVERS):
        if leftover.is_file() and not _through_link(folder, leftover):
            leftover.unlink()
    (folder / name).unlink(missing_ok=True)
    _remove_empty(folder, {p for file in listing.files for p in PurePosixPath(file).parents})


def _through_link(folder: Path, path: Path) -> bool:
    between = path.relative_to(folder).parents
    return any((folder / part).is_symlink() for part in between if part != Path("."))


def _remove_empty(folder: Path, inside: Iterable[PurePath]) -> None:
    # The longest first; `.` is the folder itself.
    for part in sorted(inside, key=lambda p: len(p.parts), reverse=True):
        path = folder / part
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def exchange(new: Path, old: Path, name: str) -> None:
    """Put a finished folder in the place of an older one, whose own files go.

    What is not the older one's stays where it is. If this is interrupted, calling it again ends it.

    Raises
    ------
    ConfigError
        If somebody's file has the name of a new one; nothing is changed then.
    """
    finished = read_listing(new, name, Listing)
    assert finished is not None
    before = read_listing(old, name, Listing)
    own = set() if before is None else {*before.files, name}
    for file in finished.files:
        if file not in own and (new / file).is_file() and (old / file).exists():
            raise ConfigError(
                f"{old / file} was not written by e3sparse and would be replaced: the results are "
                f"in {new}. Move the file away, then run the same command again."
            )
    if before is not None:
        remove_listed(old, name, before)
    if not old.exists():
        new.rename(old)
        return
    for file in [*finished.files, name]:  # the listing last: until then it can be done again
        if (new / file).is_file():
            (old / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / file, old / file)
    # A part of a run that had nothing left to do leaves a folder for a log, and no log.
    _remove_empty(new, [path.relative_to(new) for path in new.rglob("*") if path.is_dir()])
