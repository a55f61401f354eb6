"""What a model file may import when it is loaded, and the refusal of all else.

A model file is a pickle, which can run anything. Allowed are plain data, arrays and tensors, and
the layers (`torch.nn.Module`) of torch and of the frameworks, made without arguments; and the
arithmetic that torch.fx keeps as source code. Whoever wants more says that the file is trusted.
"""

import ast
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import nn

from e3sparse.errors import ConfigError
from e3sparse.potentials.pickled_names import GRAPH_MODULE, Pickled, pickled

_TRUSTED: ContextVar[bool] = ContextVar("e3sparse_trusted", default=False)

LAYERS = ("torch.nn.modules.", "e3nn.")
"""Where classes of layers are looked for, besides the packages that a backend names."""

_PLAIN = "set frozenset slice complex bytearray list dict tuple int float bool str bytes range"
NAMES: set[tuple[str, str]] = {
    *((module, name) for module in ("builtins", "__builtin__") for name in _PLAIN.split()),
    ("builtins", "object"),
    ("__builtin__", "object"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    ("torch", "device"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.storage", "UntypedStorage"),
    ("torch._C", "_VariableFunctionsClass"),
    ("torch.fx._symbolic_trace", "Tracer"),
    GRAPH_MODULE,
    ("e3nn.o3._irreps", "Irrep"),
    ("e3nn.o3._irreps", "Irreps"),
    ("e3nn.o3._irreps", "_MulIr"),
    ("e3nn.o3._linear", "Instruction"),
    ("e3nn.o3._linear", "LinearSlices"),
    ("e3nn.o3._spherical_harmonics", "_spherical_harmonics"),
    ("e3nn.o3._tensor_product._instruction", "Instruction"),
    ("ase.atoms", "Atoms"),
    ("ase.cell", "Cell"),
}
"""What may be imported by its exact name, and called."""

_ACTIVATIONS = "silu relu tanh sigmoid softplus gelu elu leaky_relu mish selu softmax hardtanh"
_FUNCTIONS = {
    (module, name)
    for module in ("torch", "torch.nn.functional", "torch._C._nn")
    for name in ("abs", *_ACTIVATIONS.split())
}
"""Activations, which a file may name and not call."""

_NODES = (
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Return, ast.Expr),
    *(ast.Name, ast.Load, ast.Store, ast.Constant, ast.Tuple, ast.List, ast.Call, ast.keyword),
    *(ast.Attribute, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UnaryOp, ast.USub),
)
_IMPORTS = {
    "NoneType = type(None)",
    "from math import inf",
    "from math import nan",
    "from torch import device",
    "import torch",
    "import torch.fx._pytree as fx_pytree",
    "import torch.utils._pytree as pytree",
}
_CALLS = {
    f"{where}.{name}"
    for where in ("torch", "torch.functional")
    for name in ("tensordot", "einsum", "mul", "add", "cat", "stack")
}

_METHODS = {"permute", "reshape", "transpose", "contiguous", "unsqueeze", "squeeze"}
"""Of tensors; no module has a function of such a name that does anything else."""


@contextmanager
def trusting() -> Iterator[None]:
    """Load any file inside this block, whatever it runs."""
    token = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def look(
    path: Path,
    packages: Sequence[str] = (),
    names: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> None:
    """Refuse a model file that would import or run what no model needs; nothing is loaded.

    Parameters
    ----------
    packages
        Of the framework: their layers may be made, such as `"mace.modules."`.
    names
        Other names of the framework that a file may import and call, with their modules.
    targets
        Where a framework makes its models by hydra: how the names of what a config in the file
        may call begin. The files that such a config names are looked at too.

    Raises
    ------
    ConfigError
        With the first name that is not allowed, or the package that is missing.
    """
    if _TRUSTED.get() or not path.is_file():
        return
    found = pickled(path)
    offenders = [
        f"{module}.{name}"
        for module, name in sorted(found.imported)
        if not _allowed((module, name), found, packages, names)
    ]
    offenders += [f"code of its own ({_first(s)})" for s in found.sources if not _arithmetic(s)]
    offenders += [f"Python of its own ({name})" for name in foreign_modules(found.modules)]
    if targets:
        offenders += [t for t in sorted(found.targets) if not t.startswith(tuple(targets))]
        for other in sorted(found.files):
            if Path(other).resolve() != path.resolve():
                look(Path(other), packages, names, targets)
    if offenders:
        more = f" and {len(offenders) - 1} more" if len(offenders) > 1 else ""
        raise ConfigError(
            f"To load '{path}' would run {offenders[0]}{more}, which no model of this framework "
            "needs. If you trust whoever made the file, give --trust-model."
        )


def _allowed(
    name: tuple[str, str], found: Pickled, packages: Sequence[str], names: Sequence[str]
) -> bool:
    module, leaf = name
    if name in NAMES or f"{module}.{leaf}" in names:
        return True
    if module == "torch" and (
        leaf.endswith("Storage") or isinstance(getattr(torch, leaf, None), torch.dtype)
    ):
        return leaf.isidentifier()
    if module == "numpy" or name in found.called:
        return False
    if name in _FUNCTIONS:
        return True
    if not f"{module}.".startswith((*LAYERS, *packages)):
        return False
    return _is_layer(module, leaf)


def _is_layer(module: str, name: str) -> bool:
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        package = module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"The model file needs the package '{package}', which is not installed."
            ) from error
        return False
    compiled = isinstance(found, torch.jit.ScriptFunction)
    return compiled or (isinstance(found, type) and issubclass(found, nn.Module))


def _arithmetic(source: str) -> bool:
    """Whether code consists of a function of tensor products alone, as e3nn's does."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return False
    body = [node for node in tree.body if ast.unparse(node) not in _IMPORTS]
    if len(body) != 1 or not isinstance(function := body[0], ast.FunctionDef):
        return False
    plain = not (function.decorator_list or function.returns or function.args.defaults)
    if not plain or any(a.annotation for a in function.args.args) or function.args.kw_defaults:
        return False
    for node in ast.walk(function):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Call) and not _of_tensors(node.func):
            return False
        if isinstance(node, ast.Name) and node.id.startswith("__"):
            return False
    # Attributes are the functions that are called, and nothing else.
    functions = {
        id(part)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        for part in ast.walk(node.func)
    }
    return all(
        id(node) in functions for node in ast.walk(function) if isinstance(node, ast.Attribute)
    )


def _of_tensors(function: ast.expr) -> bool:
    if ast.unparse(function) in _CALLS:
        return True
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return False
    return function.attr in _METHODS


def foreign_modules(modules: dict[str, bytes]) -> list[str]:
    """Return the Python files of a package that are not those of the installed distributions."""
    from torch.package import _mock, package_exporter

    known = [Path(str(_mock.__file__)).read_bytes(), package_exporter._MOCK_IMPL.encode(), b""]
    return [
        name
        for name, data in modules.items()
        # The last line has an end of its own in a package.
        if data.rstrip() not in {file.rstrip() for file in (*known, _installed(name) or b"")}
    ]


def _installed(name: str) -> bytes | None:
    package, _, rest = name.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root) / rest
        if ".." not in Path(rest).parts and path.is_file():
            return path.read_bytes()
    return None


def _first(source: str) -> str:
    lines = [line.strip() for line in source.splitlines() if line.strip() not in _IMPORTS]
    return next((line[:60] for line in lines if line), "none")
