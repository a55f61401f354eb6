"""Damaged and hostile model files: what is in them must not run, whatever command reads them."""

import io
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import ase.io
from faults_damage import DAMAGES
from faults_outcomes import Found, command, of_command
from faults_subjects import SAMPLE, restored, tiny_mace, tiny_sevennet

BYTES = ("bytes flipped", "character changed", "cut off", "run of zeros", "file missing")
BYTES = (*BYTES, "file of another save", "link or pipe")

# Names that run what they are given. Some lie in packages that a model file may well mention.
GADGETS: dict[str, Callable[[str], tuple[str, str, tuple[Any, ...]]]] = {
    "os.system": lambda mark: ("os", "system", (f"touch {mark}",)),
    "posix.system": lambda mark: ("posix", "system", (f"touch {mark}",)),
    "subprocess.getoutput": lambda mark: ("subprocess", "getoutput", (f"touch {mark}",)),
    "builtins.open": lambda mark: ("builtins", "open", (mark, "w")),
    "io.open": lambda mark: ("io", "open", (mark, "w")),
    "builtins.exec": lambda mark: ("builtins", "exec", (_code(mark),)),
    "builtins.eval": lambda mark: ("builtins", "eval", (f"open({mark!r}, 'w')",)),
    "__builtin__.eval": lambda mark: ("__builtin__", "eval", (f"open({mark!r}, 'w')",)),
    "os.mkdir": lambda mark: ("os", "mkdir", (mark,)),
    "shutil.copy": lambda mark: ("shutil", "copy", ("/etc/hostname", mark)),
    "timeit.timeit": lambda mark: ("timeit", "timeit", ("pass", _code(mark))),
    "cProfile.run": lambda mark: ("cProfile", "run", (_code(mark),)),
    "pydoc.pipepager": lambda mark: ("pydoc", "pipepager", ("", f"touch {mark}")),
    "pickle.loads": lambda mark: ("pickle", "loads", (_reduce("os", "mkdir", (mark,)),)),
    "_pickle.loads": lambda mark: ("_pickle", "loads", (_reduce("os", "mkdir", (mark,)),)),
    "torch collect_env": lambda mark: ("torch.utils.collect_env", "run", (f"touch {mark}",)),
    "torch os": lambda mark: ("torch.serialization", "os.mkdir", (mark,)),
    "torch shutil": lambda mark: ("torch.serialization", "shutil.copy", ("/etc/hostname", mark)),
    "torch open": lambda mark: ("torch.serialization", "open", (mark, "w")),
    "numpy runstring": lambda mark: (
        "numpy.testing._private.utils", "runstring", (_code(mark), {}),
    ),
    "numpy crackfortran": lambda mark: (
        "numpy.f2py.crackfortran", "myeval", (f"__import__('os').mkdir({mark!r})", {}),
    ),
    "numpy savetxt": lambda mark: ("numpy", "savetxt", (mark, [1.0])),
    "numpy tofile": lambda mark: ("numpy", "save", (mark, [1.0])),
    "ase write": lambda mark: ("ase.parallel", "paropen", (mark, "w")),
    "e3nn builtins": lambda mark: ("e3nn.util.codegen", "__builtins__.open", (mark, "w")),
}  # fmt: skip


def _code(mark: str) -> str:
    return f"open({mark!r}, 'w')"


def _text(word: str) -> bytes:
    encoded = word.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _reduce(module: str, name: str, arguments: tuple[Any, ...], opcode: str = "global") -> bytes:
    """Return a pickle that calls a name, written by hand: nothing is imported here."""
    given = pickle.dumps(arguments, protocol=2)[2:-1]
    if opcode == "inst":
        inner = b"".join(pickle.dumps(a, protocol=2)[2:-1] for a in arguments)
        return b"\x80\x02(" + inner + f"i{module}\n{name}\n.".encode()
    if opcode == "stack":
        return b"\x80\x04" + _text(module) + _text(name) + b"\x93" + given + b"R."
    if opcode == "memo":  # the names are fetched from the memo
        put = _text(module) + b"q\xfa0" + _text(name) + b"q\xfb0"
        return b"\x80\x04" + put + b"h\xfah\xfb\x93" + given + b"R."
    if opcode == "obj":
        inner = b"".join(pickle.dumps(a, protocol=2)[2:-1] for a in arguments)
        return b"\x80\x02(" + f"c{module}\n{name}\n".encode() + inner + b"o."
    return b"\x80\x02" + f"c{module}\n{name}\n".encode() + given + b"R."


OPCODES = ("global", "stack", "memo", "inst", "obj")


def _before(real: bytes, bomb: bytes) -> bytes:
    """Return a pickle that first does what the bomb does, and then is the real one."""
    head = bomb[2:-1] + b"0"  # without protocol and stop; the result is dropped
    return b"\x80\x04" + head + real[2:]


def hostile(real: Path, path: Path, rng: Random, mark: Path) -> None:
    """Write a model file that runs something, in one of the shapes that `torch.load` reads."""
    module, name, arguments = GADGETS[rng.choice(list(GADGETS))](str(mark))
    opcode = "stack" if "." in name else rng.choice(OPCODES)
    bomb = _reduce(module, name, arguments, opcode)
    shape = rng.choice(["pickle", "legacy", "tar", "zip", "inside", "inside", "beside"])
    if shape == "pickle":
        path.write_bytes(bomb)
    elif shape == "legacy":
        magic = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in magic) + bomb)
    elif shape == "tar":
        with tarfile.open(path, "w") as archive:
            for member in ("storages", "tensors", "pickle"):
                info = tarfile.TarInfo(member)
                info.size = len(bomb)
                archive.addfile(info, io.BytesIO(bomb))
    else:
        _rewrite(real, path, bomb, shape)


def _rewrite(real: Path, path: Path, bomb: bytes, shape: str) -> None:
    with zipfile.ZipFile(real) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("/data.pkl"):
                if shape == "beside":  # a second one of the same name, which may be read instead
                    target.writestr(entry.filename, content)
                content = _before(content, bomb) if shape == "inside" else bomb
            target.writestr(entry.filename, content)


class _Models:
    """Tries of one framework's model file.

    Parameters
    ----------
    place
        An empty folder.
    seed
        Of all random numbers.
    """

    tries, block, limit = 600, 30, 120.0
    backend, suffix = "", ""
    write: Callable[..., Path]

    def __init__(self, place: Path, seed: int) -> None:
        self.seed, self.place = seed, place
        for number, name in enumerate(("mine", "other")):
            (place / name).mkdir()
            type(self).write(place / name / f"model{self.suffix}", number)
        self.file = place / "damaged" / f"model{self.suffix}"
        self.mark = place / "executed"
        ase.io.write(place / "test.xyz", ase.io.read(SAMPLE / "test.xyz", index=":2"))
        restored(place / "mine", self.file.parent)
        self.right = {name: self._answer(name, False) for name in self.commands}

    commands = ("inspect", "evaluate", "merge")

    def attack(self, number: int) -> str:
        """Return what is done to the file; half of the tries are hostile."""
        return "hostile pickle" if number % 2 else BYTES[number // 2 % len(BYTES)]

    def _run(self, name: str, named: bool) -> Any:
        flags = ("--backend", self.backend) if named else ()
        out = self.place / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if name == "inspect":
            return command("inspect", self.file, *flags)
        if name == "evaluate":
            data = ("--data", self.place / "test.xyz", "--json", out / "errors.json")
            return command("evaluate", self.file, *data, *flags)
        adapter = ("--adapter", self.place / "no-adapter", "--out", out / f"merged{self.suffix}")
        return command("merge", self.file, *adapter, *flags)

    def _answer(self, name: str, named: bool) -> object:
        return self._said(name, self._run(name, named))

    def _said(self, name: str, printed: Any) -> object:
        if name == "evaluate":
            return (self.place / "out" / "errors.json").read_text()
        # What inspect recommends repeats --backend where it was given.
        lines = [line for line in printed.out.splitlines() if "--backend" not in line]
        lines = [line for line in lines if "e3sparse finetune" not in line]
        return printed.code, lines

    def attempt(self, number: int) -> Found:
        """Run a command on a damaged or hostile model file."""
        rng = Random(f"{self.backend} {self.seed} {number}")
        restored(self.place / "mine", self.file.parent)
        if self.mark.is_dir():
            self.mark.rmdir()
        self.mark.unlink(missing_ok=True)
        attack = self.attack(number)
        real = self.place / "mine" / self.file.name
        if attack == "hostile pickle":
            hostile(real, self.file, rng, self.mark)
        else:
            DAMAGES[attack]([self.file], [self.place / "other"], rng)
        name, named = rng.choice(self.commands), rng.random() < 0.5
        found = of_command(
            lambda: self._run(name, named), self.right[name], lambda p: self._said(name, p)
        )
        if self.mark.exists():
            return Found("executed", f"{name}: then {found.outcome}, {found.said}")
        # Another whole model file, which nothing contradicts, is not a damaged one.
        if attack in ("file of another save", "link or pipe") and found.outcome == "silent":
            return Found("right", "another model")
        return Found(found.outcome, f"{name}: {found.said}")


class SevenNet(_Models):
    """Checkpoints of SevenNet."""

    backend, suffix = "sevennet", ".pth"
    write = staticmethod(tiny_sevennet)


class Mace(_Models):
    """Models of MACE."""

    backend, suffix = "mace", ".model"
    write = staticmethod(tiny_mace)
