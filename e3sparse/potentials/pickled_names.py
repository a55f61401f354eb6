"""Which names the pickles in a model file would import, found without importing any of them."""

import io
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from e3sparse.errors import ConfigError

GRAPH_MODULE = ("torch.fx.graph_module", "reduce_graph_module")
"""Executes source code that the pickle holds, and stands in every MACE file (e3nn's products)."""

_GETATTR = {("builtins", "getattr"), ("__builtin__", "getattr")}
"""How functions such as `torch.tanh` are pickled; anything else that it gets is refused."""

_ZIP = b"PK\x03\x04"
_LEGACY = 5
"""Pickles in a row of torch's format before 1.6: magic, protocol, system, object, storages."""


class Pickled(NamedTuple):
    """What the pickles of a file would do.

    Attributes
    ----------
    imported
        Module and name of all that is imported.
    called
        Those of them that the pickle calls with arguments of its own.
    sources
        The Python code that torch would execute to make modules of torch.fx.
    modules
        Python files of a torch.package by their path; its pickles import from these.
    targets
        What a config in the file tells hydra to call (`_target_`).
    files
        Other model files that such a config names (`package_path`, `checkpoint_path`).
    """

    imported: set[tuple[str, str]]
    called: set[tuple[str, str]]
    sources: list[str]
    modules: dict[str, bytes]
    targets: set[str]
    files: set[str]


class _Inert(type):
    """Class of the stand-ins: that they are called is noted, and nothing is run."""

    pickled: tuple[str, str]
    reader: "_Reader"

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            cls.reader.note_call(cls.pickled, args)
        made: Any = cls
        return object.__new__(made)


class _StandIn(metaclass=_Inert):
    """Stands for whatever a pickle imports, makes and fills."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _Inert.__call__(cls, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def _take(self, *values: Any) -> None:
        type(self).reader.seen.append(values)

    __setstate__ = __setitem__ = append = extend = add = _take


class _Reader(pickle.Unpickler):
    """Runs the instructions of a pickle with stand-ins for all that it imports."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.imported: set[tuple[str, str]] = set()
        self.called: set[tuple[str, str]] = set()
        self.sources: list[str] = []
        self.seen: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GETATTR:
            self.imported.add((module, name))
        return self._stand_in((module, name))

    def persistent_load(self, pid: Any) -> Any:
        self.seen.append(pid)
        # In torch's old format a class of layers is kept with its source, which is only compared.
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]
        return object.__new__(self._stand_in(("", "")))

    def _stand_in(self, pickled: tuple[str, str]) -> Any:
        return _Inert("StandIn", (_StandIn,), {"pickled": pickled, "reader": self})

    def note_call(self, pickled: tuple[str, str], args: tuple[Any, ...]) -> None:
        self.called.add(pickled)
        if pickled in _GETATTR:
            owner = getattr(args[0], "pickled", None)
            known = owner == ("torch._C", "_VariableFunctionsClass") and len(args) == 2
            name = ("torch", args[1]) if known and isinstance(args[1], str) else pickled
            self.imported.add(name)
            self.seen.append(args)
            return
        if pickled != GRAPH_MODULE:
            self.seen.append(args)
            return
        body, imports = args if len(args) == 2 else ({}, None)
        source = body.get("_code") if type(body) is dict else None
        tracer = getattr(body.get("_tracer_cls"), "pickled", None) if source else None
        plain = tracer in (None, ("torch.fx._symbolic_trace", "Tracer"))
        if not isinstance(source, str) or not isinstance(imports, str) or not plain:
            source, imports = "nothing that can be looked at", ""
        elif body.get("_tracer_extras"):
            source = "extras of a tracer"
        self.sources.append(f"{imports}\n{source}")
        self.seen.append(body)

    def values(self, result: Any) -> Iterator[Any]:
        """Yield all values that were made, and those that were called with or filled in."""
        stack, done = [result, *self.seen], set()
        while stack:
            value = stack.pop()
            if id(value) in done:
                continue
            done.add(id(value))
            yield value
            if isinstance(value, dict):
                stack += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple | set | frozenset):
                stack += value


def pickled(path: Path) -> Pickled:
    """Read what the pickles of a file would import and call.

    The file is taken apart as `torch.load` and `torch.package` do, by torch's own reader of
    archives, so that they cannot find another pickle in it than is read here. TorchScript archives
    have none: torch reads them in C++, where there is nothing to import.

    Raises
    ------
    ConfigError
        If the file is none that torch could load.
    """
    found = Pickled(set(), set(), [], {}, set(), set())
    for name, data in _records(path):
        if name.endswith(".py"):
            found.modules[name] = data
            continue
        stream = io.BytesIO(data)
        for _ in range(_LEGACY):
            reader = _Reader(stream)
            try:
                result = reader.load()
            except Exception as error:
                raise ConfigError(
                    f"'{path}' is no model file that torch could load, or is damaged "
                    f"({type(error).__name__}: {str(error).strip() or 'cut short'})."
                ) from None
            found.imported.update(reader.imported)
            found.called.update(reader.called)
            found.sources.extend(reader.sources)
            for value in reader.values(result):
                if isinstance(value, _Inert) and value.pickled in {GRAPH_MODULE, *_GETATTR}:
                    found.sources.append("a function that executes code, as a value")
                if isinstance(value, dict):
                    found.targets.update(_strings(value, "_target_"))
                    found.files.update(_strings(value, "package_path", "checkpoint_path"))
            if stream.tell() >= len(data):  # else raw numbers are behind the last of the five
                break
    return found


def _strings(values: dict[Any, Any], *keys: str) -> Iterator[str]:
    for key in keys:
        if isinstance(value := values.get(key), str):
            yield value


def _records(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the pickles and the Python files of an archive, or a file that is none whole."""
    with open(path, "rb") as file:
        start = file.read(len(_ZIP))
        if not start:
            raise ConfigError(f"'{path}' is empty.")
        if start != _ZIP:
            file.seek(0)
            yield path.name, file.read()
            return
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        names = reader.get_all_records()
        scripted = "constants.pkl" in names
        for name in names:
            if name.endswith(".py") or (name.endswith(".pkl") and not scripted):
                yield name, reader.get_record(name)
        # torch does not compare checksums: damaged numbers would be other numbers.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ConfigError(
            f"'{path}' is no archive that torch could load, or is cut short "
            f"({str(error).splitlines()[0].partition('. ')[0]})."
        ) from None
    if damaged is not None:
        raise ConfigError(f"'{path}' is damaged: '{damaged}' in it has not its checksum.")
