"""The pages of the repository: what is on them to be run, parsed and followed."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "e3sparse", "integrations")
README = ROOT / "README.md"
PAGES = [
    *sorted([*ROOT.glob("*.md"), *(ROOT / ".github").glob("*.md")]),
    *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("README.md"))),
]
ELSEWHERE = {"e3sparse_mace", "e3sparse_nequip"}
"""Folders whose pages run in an environment of their own."""

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def name_of(page: Path) -> str:
    """Return what a test calls a page."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a language; "" is that of shell commands and what they print."""
    return [code for said, code in _BLOCK.findall(page.read_text()) if said == language]


def run_python(page: Path) -> dict[str, object]:
    """Run the Python of a page from top to bottom; returns the names that it has defined."""
    names: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)
    return names


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """Yield the arguments of each command of a program in the shell blocks of a page."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(f"{program} "):
                yield shlex.split(line, comments=True)[1:]


def inline(page: Path) -> list[str]:
    """Return what stands in backticks within the prose of a page."""
    return [" ".join(code.split()) for code in _INLINE.findall(_BLOCK.sub("", page.read_text()))]


def options(command: Any) -> set[str]:
    """Return the options of a command of Typer's and of those below it."""
    found = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    for sub in getattr(command, "commands", {}).values():
        found |= options(sub)
    return found


def links(page: Path) -> list[str]:
    """Return where the links and images of a page lead."""
    return _LINK.findall(_INLINE.sub("", _BLOCK.sub("", page.read_text())))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", _BLOCK.sub("", page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return found
