"""Writing a NequIP package (`.nequip.zip`) with changed weights.

The layout is that of `nequip-package build` and `modify` (nequip/scripts/package.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from nequip.model.saved_models import load_saved_model
from nequip.model.saved_models import package as saved_package
from nequip.model.saved_models.load_utils import _get_model_file_path
from nequip.model.saved_models.package import (
    _cpu_deserialize_always,
    _get_package_metadata,
    _suppress_package_importer_exporter_warnings,
)
from nequip.scripts._package_utils import (
    _EXTERNAL_MODULES,
    _INTERNAL_MODULES,
    _MOCK_MODULES,
    _PACKAGING_MODES,
)
from nequip.scripts._workflow_utils import set_workflow_state
from nequip.scripts.package import _CURRENT_NEQUIP_PACKAGE_VERSION
from nequip.train.lightning import _SOLE_MODEL_KEY
from nequip.utils.versions import get_current_code_versions
from nequip.utils.versions.version_utils import get_version_safe
from torch import Tensor, nn
from torch.package.importer import sys_importer
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter

from e3sparse.errors import ConfigError
from e3sparse_nequip.options import nequip_state

SUFFIX = ".nequip.zip"


def write_package(
    path: Path, source: str, module: nn.Module, example: Mapping[str, Tensor] | None
) -> None:
    """Write a package of the model in `source` with the weights of `module`.

    Parameters
    ----------
    path
        Of the file to write.
    source
        What the model was loaded from: a package, a checkpoint or a `nequip.net:` name.
    module
        The `GraphModel` whose weights and buffers count; not patched.
    example
        A graph, which `nequip-compile` traces the model with; a package brings its own.

    Raises
    ------
    ConfigError
        If there is no example for a model from a checkpoint.
    """
    weights = module.state_dict()
    with _get_model_file_path(source) as file, _suppress_package_importer_exporter_warnings():
        if str(file).endswith(SUFFIX):
            importer = PackageImporter(str(file))
            found, metadata, config, example = _from_package(importer)
            importers: tuple[Any, ...] = (importer, sys_importer)
        else:
            if example is None:
                raise ConfigError(
                    f"A package of {source} needs an example for nequip-compile: evaluate a "
                    "structure first."
                )
            found, metadata, config, importers = _from_checkpoint(file)
        for models in found.values():
            model = models[_SOLE_MODEL_KEY]
            model.load_state_dict(_with_all_digits(weights, model.state_dict()))
        with _exporter(path, importers) as exporter:
            exporter.save_pickle("model", "example_data.pkl", dict(example), dependencies=True)
            exporter.save_text("model", "config.yaml", config)
            exporter.save_text("model", "package_metadata.txt", yaml.dump(metadata))
            for mode, models in found.items():
                exporter.save_pickle("model", f"{mode}_model.pkl", models, dependencies=True)


def _with_all_digits(weights: dict[str, Tensor], source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights; those that are the source's but for their precision, as the source's."""
    return {
        name: source[name]
        if name in source and torch.equal(source[name].to(values), values)
        else values
        for name, values in weights.items()
    }


@contextmanager
def _exporter(path: Path, importers: tuple[Any, ...]) -> Iterator[PackageExporter]:
    with PackageExporter(str(path), importer=importers) as exporter:
        exporter.mock([f"{package}.**" for package in _MOCK_MODULES])
        exporter.extern([f"{package}.**" for package in _EXTERNAL_MODULES])
        exporter.intern([f"{package}.**" for package in _INTERNAL_MODULES])
        yield exporter


def _from_package(importer: PackageImporter) -> tuple[dict[str, Any], Any, str, Any]:
    metadata = _get_package_metadata(importer)
    with _cpu_deserialize_always():
        found = {
            mode: importer.load_pickle("model", f"{mode}_model.pkl", map_location="cpu")
            for mode in metadata["available_models"]
        }
        example = importer.load_pickle("model", "example_data.pkl")
    return found, metadata, importer.load_text("model", "config.yaml"), example


def _from_checkpoint(file: Path) -> tuple[dict[str, Any], Any, str, tuple[Any, ...]]:
    # A checkpoint that was trained from a package brings its classes from there: in this state
    # NequIP takes those of all modes from one importer.
    saved_package._PACKAGE_TIME_SHARED_IMPORTER = None
    set_workflow_state("package")
    try:
        with nequip_state():
            eager = load_saved_model(file, compile_mode="eager", model_key=None)
            importer = saved_package._get_shared_importer()
            modes = (
                _PACKAGING_MODES["nequip"]()
                if importer is None
                else _get_package_metadata(importer)["available_models"]
            )
            found = {"eager": eager} | {
                mode: load_saved_model(file, compile_mode=mode, model_key=None)
                for mode in modes
                if mode != "eager"
            }
    finally:
        saved_package._PACKAGE_TIME_SHARED_IMPORTER = None
        set_workflow_state(None)
    importers = (sys_importer,) if importer is None else (importer, sys_importer)
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    config = dict(checkpoint["hyper_parameters"]["info_dict"])
    config.pop("versions")
    model = next(iter(found.values()))[_SOLE_MODEL_KEY]
    metadata = {
        "versions": get_current_code_versions(),
        "external_modules": {k: get_version_safe(k) for k in _EXTERNAL_MODULES},
        "package_version_id": _CURRENT_NEQUIP_PACKAGE_VERSION,
        "available_models": list(found),
        "atom_types": dict(enumerate(model.type_names)),
    }
    return found, metadata, yaml.safe_dump(config), importers
