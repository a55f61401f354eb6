"""Modules that had another name in 0.1: the old one works for one version, with a warning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "e3sparse.acceleration": "e3sparse.layers.faster_products",
    "e3sparse.adapter_config": "e3sparse.adapter.config",
    "e3sparse.adapter_file": "e3sparse.adapter.file",
    "e3sparse.backends": "e3sparse.potentials.backends",
    "e3sparse.calculator": "e3sparse.potentials.calculator",
    "e3sparse.coupling": "e3sparse.layers.clebsch_gordan",
    "e3sparse.fingerprint": "e3sparse.adapter.fingerprint",
    "e3sparse.injection": "e3sparse.layers.injection",
    "e3sparse.magnetism.products": "e3sparse.magnetism.graded_products",
    "e3sparse.merging": "e3sparse.layers.merging",
    "e3sparse.patching": "e3sparse.adapter.patching",
    "e3sparse.paths": "e3sparse.layers.kinds",
    "e3sparse.sparsity": "e3sparse.adapter.sparsity",
    "e3sparse.spins": "e3sparse.potentials.spins",
    "e3sparse.state": "e3sparse.adapter.state",
    "e3sparse.structures": "e3sparse.potentials.structure_files",
    "e3sparse.symmetry.precision": "e3sparse.symmetry.dtypes",
    "e3sparse.symmetry.spins": "e3sparse.symmetry.time_reversal",
    "e3sparse.targets": "e3sparse.adapter.targets",
    "e3sparse.training.evaluation": "e3sparse.frames.evaluation",
    "e3sparse.training.figures": "e3sparse.training.run_figures",
    "e3sparse.training.frames": "e3sparse.frames.reading",
    "e3sparse.training.references": "e3sparse.frames.references",
    "e3sparse.training.report": "e3sparse.training.run_comparison",
    "e3sparse_mace.products": "e3sparse_mace.contractions",
    "e3sparse_mace.reading": "e3sparse_mace.model_layers",
}


class _OldNames(MetaPathFinder, Loader):
    """Finds a module under its old name: one whose names are those of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(
            f"{module.__name__} is {new} now, and the old name goes with the next version.",
            DeprecationWarning,
            stacklevel=2,
        )
        vars(module).update(
            {k: v for k, v in vars(import_module(new)).items() if not k.startswith("__")}
        )


def keep_old_names() -> None:
    """Let the import system find moved modules under their old names."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
