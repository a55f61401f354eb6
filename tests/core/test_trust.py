"""Model files that would run something are refused before they do; real ones are not."""

import builtins
import functools
import importlib
import io
import operator
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import network
from torch import nn

from e3sparse.errors import ConfigError
from e3sparse.potentials.trust import foreign_modules, look, trusting

pytestmark = pytest.mark.any_e3nn


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def touching(marker):
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def graph(code, imports="import torch\n", **more):
    reduce_graph_module = importlib.import_module("torch.fx.graph_module").reduce_graph_module
    return Calls(reduce_graph_module, {"_code": code, "_modules": {}} | more, imports)


PLAIN = "\ndef forward(self, x):\n    return x\n"

# What is pickled and what is to be named, given the file that the payload touches.
OBJECTS = {
    "os.system": (lambda m: Calls(os.system, f"touch {m}"), r"posix\.system"),
    "eval": (lambda m: Calls(eval, touching(m)), r"builtin\w*\.eval"),
    "exec": (lambda m: Calls(exec, touching(m)), r"builtin\w*\.exec"),
    "getattr": (
        lambda m: Calls(Calls(getattr, Path(m), "touch").function, Path(m), "touch"),
        r"builtin\w*\.getattr",
    ),
    "partial": (lambda m: Calls(map, functools.partial(eval), [touching(m)]), r"builtin\w*\.eval"),
    "methodcaller": (
        lambda m: Calls(operator.methodcaller("touch"), Path(m)),
        r"operator\.methodcaller",
    ),
    "bytes of a storage": (
        lambda m: Calls(torch.storage._load_from_bytes, saved(Calls(eval, touching(m)))),
        r"torch\.storage\._load_from_bytes",
    ),
    "imports of a graph": (lambda m: graph(PLAIN, touching(m) + "\n"), "code of its own"),
    "a default of a graph": (
        lambda m: graph(PLAIN.replace("x)", f"x={touching(m)})")),
        "code of its own",
    ),
    "a call of a graph": (
        lambda m: graph(PLAIN.replace("return", f"y = {touching(m)}\n    return")),
        "code of its own",
    ),
}


def saved(value, **options):
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


CONTAINERS = {
    "archive": saved,
    "old format": lambda value: saved(value, _use_new_zipfile_serialization=False),
    "pickle of protocol 0": lambda value: pickle.dumps(value, 0),
    "pickle of protocol 4": lambda value: pickle.dumps(value, 4),
}


def run(path):
    """Load a file as who trusts it does."""
    try:
        torch.load(path, weights_only=False)
    except Exception:
        with open(path, "rb") as file:
            pickle.load(file)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", OBJECTS)
def test_what_a_pickle_would_run_is_named_and_not_run(name, container, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "model"
    make, offender = OBJECTS[name]
    path.write_bytes(CONTAINERS[container]({"data": 1, "more": [make(marker)]}))
    with pytest.raises(ConfigError, match=f"would run .*{offender}.*--trust-model"):
        look(path)
    assert not marker.exists()
    with trusting():
        look(path)
    with suppress(Exception):  # a graph ends badly, when it has run
        run(path)
    if name not in ("getattr", "partial"):  # these need another step to run
        assert marker.exists()


def opcodes(marker):
    """Return pickles that no pickler writes, and what they name."""
    command = f"touch {marker}".encode()
    argument = pickle.BINUNICODE + len(command).to_bytes(4, "little") + command + pickle.TUPLE1
    short = pickle.SHORT_BINUNICODE
    names = short + b"\x06system" + pickle.MEMOIZE + short + b"\x05posix" + pickle.MEMOIZE
    recalled = pickle.BINGET + b"\x01" + pickle.BINGET + b"\x00" + pickle.STACK_GLOBAL
    call = argument + pickle.REDUCE + pickle.STOP
    return {
        "instance": b"(S'" + command + b"'\niposix\nsystem\n.",
        "object": b"(cposix\nsystem\n" + argument[:-1] + pickle.OBJ + pickle.STOP,
        "from the memo": b"\x80\x04" + names + pickle.POP + pickle.POP + recalled + call,
        "doubled": b"\x80\x04"
        + short
        + b"\x05posix"
        + pickle.DUP
        + pickle.POP
        + short
        + b"\x06system"
        + pickle.STACK_GLOBAL
        + call,
        "behind another": pickle.dumps(1, 2)[:-1] + pickle.POP + b"cposix\nsystem\n" + call,
    }


@pytest.mark.parametrize(
    "name", ["instance", "object", "from the memo", "doubled", "behind another"]
)
def test_instructions_that_no_pickler_writes(name, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "model"
    path.write_bytes(opcodes(marker)[name])
    with pytest.raises(ConfigError, match=r"would run posix\.system"):
        look(path)
    assert not marker.exists()
    try:
        run(path)
    except pickle.UnpicklingError:
        assert name == "object"
    assert marker.exists() or name == "object"


def test_a_second_pickle_of_the_old_format_is_read_too(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "model"
    harmless = io.BytesIO(CONTAINERS["old format"]({"a": torch.ones(2)}))
    pieces = []
    for _ in range(5):
        start = harmless.tell()
        unpickler = pickle.Unpickler(harmless)
        unpickler.persistent_load = lambda pid: torch.storage.TypedStorage(2, dtype=torch.float)
        unpickler.load()
        pieces.append(harmless.getvalue()[start : harmless.tell()])
    pieces[4] = pickle.dumps(Calls(eval, touching(marker)), 2)
    path.write_bytes(b"".join(pieces))
    with pytest.raises(ConfigError, match=r"builtin\w*\.eval"):
        look(path)
    assert not marker.exists()


def test_which_reader_a_file_is_for_is_told_as_torch_does(tmp_path):
    # A zip archive may stand at the end of a file that begins with a pickle.
    marker, path = tmp_path / "marker", tmp_path / "model"
    path.write_bytes(pickle.dumps(Calls(eval, touching(marker)), 2) + saved({"a": 1}))
    assert zipfile.is_zipfile(path)
    with pytest.raises(ConfigError):
        look(path)
    assert not marker.exists()


def test_code_may_not_be_handed_around(tmp_path):
    path = tmp_path / "model"
    function = importlib.import_module("torch.fx.graph_module").reduce_graph_module
    handed = ([function], {"hook": function}, Calls(dict, [("a", function)]), function, [getattr])
    for value in handed:
        path.write_bytes(saved(value))
        with pytest.raises(ConfigError, match="code of its own"):
            look(path)


@pytest.mark.parametrize(
    ("value", "offender"),
    [
        (Calls(nn.Linear, 2, 2), "torch.nn.modules.linear.Linear"),  # made with arguments
        (torch.hub.load, "torch.hub.load"),
        (builtins.open, "io.open"),
        (Calls(__import__("numpy").memmap, "x", "w+"), "numpy.memmap"),
    ],
    ids=["arguments", "hub", "open", "memmap"],
)
def test_more_that_no_model_needs(value, offender, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(pickle.dumps(value, 2))
    with pytest.raises(ConfigError, match=offender):
        look(path)


def test_a_package_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"\x80\x02cnopackage.nn.layers\nLayer\n)\x81.")
    with pytest.raises(ConfigError, match="needs the package 'nopackage', which is not installed"):
        look(path, ["nopackage.nn."])


def test_a_config_that_hydra_would_call_from_is_read(tmp_path):
    path, other = tmp_path / "model", tmp_path / "other"
    config = {"model": {"_target_": "nequip.model.GNN", "hidden": [{"_target_": "os.system"}]}}
    path.write_bytes(saved({"hyper_parameters": config}))
    look(path)
    with pytest.raises(ConfigError, match=r"would run os\.system, which"):
        look(path, targets=["nequip.model."])
    config["model"]["hidden"] = []
    path.write_bytes(saved({"hyper_parameters": config}))
    look(path, targets=["nequip.model."])
    other.write_bytes(saved(Calls(eval, "1")))
    config["model"]["package_path"] = str(other)
    path.write_bytes(saved({"hyper_parameters": config}))
    with pytest.raises(ConfigError, match=r"other' would run .*eval"):
        look(path, targets=["nequip.model."])


@pytest.mark.parametrize("container", CONTAINERS)
def test_models_pass(container, tmp_path):
    path = tmp_path / "model"
    values = {
        "layers": nn.Sequential(nn.Linear(2, 3), nn.SiLU(), nn.LayerNorm(3)),
        "tensors": [torch.ones(2, dtype=d) for d in (torch.float32, torch.bfloat16, torch.int64)],
        "data": {"a": (1, 2.0, None, {3}, frozenset({4}), slice(1), 1j, b"5", bytearray(b"6"))},
        "dtype": torch.float64,
        "device": torch.device("cpu"),
        "array": __import__("numpy").arange(3.0),
        "activations": [nn.functional.silu, torch.tanh, torch.sigmoid],
    }
    path.write_bytes(CONTAINERS["archive"](values))
    look(path)
    del values["tensors"], values["layers"]
    path.write_bytes(CONTAINERS[container](values))
    look(path)


def test_a_network_of_every_layer_passes(tmp_path):
    class_of = type(network())
    torch.save(network(), tmp_path / "model")
    with pytest.raises(ConfigError, match=class_of.__name__):
        look(tmp_path / "model")
    look(tmp_path / "model", [f"{class_of.__module__}."])


def test_other_numbers_are_damage(tmp_path):
    path, weight = tmp_path / "model", torch.arange(100.0)
    data = saved({"weight": weight})
    place = data.index(weight.numpy().tobytes())
    path.write_bytes(data[: place + 8] + bytes(40) + data[place + 48 :])
    with pytest.raises(ConfigError, match="has not its checksum"):
        look(path)
    path.write_bytes(data)
    look(path)


def test_python_in_a_package_has_to_be_the_installed(tmp_path):
    from torch.package import _mock

    installed = Path(importlib.import_module("e3sparse.errors").__file__).read_bytes()
    same = {"e3sparse/errors.py": installed + b"\n", "_mock.py": Path(_mock.__file__).read_bytes()}
    assert foreign_modules(same) == []
    other = {
        "e3sparse/errors.py": installed + b"import os\n",
        "e3sparse/nothing.py": b"import os\n",
        "e3sparse/../../evil.py": installed,
        "nopackage/evil.py": b"import os\n",
    }
    assert foreign_modules(other) == list(other)
    path = tmp_path / "model.zip"
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in (same | other).items():
        writer.write_record(name.replace("../", ""), data, len(data))
    writer.write_end_of_file()
    with pytest.raises(ConfigError, match=r"Python of its own \(e3sparse/errors.py\) and 3 more"):
        look(path)


@given(cut=st.floats(0, 1), flips=st.lists(st.floats(0, 0.999), max_size=3))
def test_damage_ends_in_one_sentence(cut, flips, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "model"
    data = bytearray(saved({"layer": nn.Linear(3, 3), "text": "t" * 50}))
    for flip in flips:
        data[int(flip * len(data))] ^= 0x55
    path.write_bytes(data[: int(cut * len(data))])
    said = f"'{path}'"
    with suppress(ConfigError):
        try:
            look(path)
        except ConfigError as error:
            said = str(error)
            raise
    assert str(path) in said
    assert "\n" not in said
