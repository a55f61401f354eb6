"""Break our own code in many ways, one at a time, and see which test notices.

    python tests/mutants.py                 # all of them, writes tests/mutants.md
    python tests/mutants.py stress scale    # those whose name contains a word; writes nothing

Each mutant is a change of one place in a copy of the tree. The tests that are expected to notice
run first, then all that need no framework; a mutant that no test notices is a failure.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "tests" / "mutants.md"
TREES = ("e3sparse", "integrations", "tests", "pyproject.toml", "README.md")
CORE, SEVENNET = "e3sparse", "integrations/e3sparse_sevennet"


@dataclass(frozen=True)
class Mutant:
    """A change that breaks a promise, and the tests that are expected to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant(
        "multiply the learning rate by the growth of all steps",
        f"{CORE}/adapter/schedule.py",
        'group["lr"] *= rate / before',
        'group["lr"] *= rate',
        "tests/core/test_budget.py",
    ),
    Mutant(
        "train with the learning rate of the start",
        f"{CORE}/training/module.py",
        "self.adapter.step(self._progress(), optimizer=self.trainer.optimizers[0])",
        "self.adapter.step(self._progress())",
        "tests/sevennet/test_training.py",
    ),
    Mutant(
        "transpose the blocks of a linear layer",
        f"{CORE}/layers/kinds.py",
        "shape=tuple(ins.path_shape),\n                start=start,\n"
        "                path_weight=float(ins.path_weight),\n            )\n        )\n"
        '        start += blocks[-1].numel\n    return Layout(\n        kind="linear"',
        "shape=tuple(reversed(ins.path_shape)),\n                start=start,\n"
        "                path_weight=float(ins.path_weight),\n            )\n        )\n"
        '        start += blocks[-1].numel\n    return Layout(\n        kind="linear"',
        "tests/core/test_paths.py",
    ),
    Mutant(
        "skip the normalisation of a path weight",
        f"{CORE}/layers/kinds.py",
        "norm /= layer.var_out",
        "pass",
        "tests/core/test_paths.py",
    ),
    Mutant(
        "give weights to paths that have none",
        f"{CORE}/layers/kinds.py",
        "if not ins.has_weight:\n            continue",
        "if False:\n            continue",
        "tests/core/test_paths.py",
    ),
    Mutant(
        "do not know classes from a package",
        f"{CORE}/layers/kinds.py",
        "_PACKAGE_PREFIX.sub('', cls.__module__)",
        "cls.__module__",
        "tests/core/test_paths.py",
    ),
    Mutant(
        "let running statistics move",
        f"{CORE}/adapter/statistics.py",
        "property(lambda self: False,",
        "property(lambda self: vars(self)['training'],",
        "tests/core/test_statistics.py",
    ),
    Mutant(
        "merge all layers but the first",
        f"{CORE}/layers/merging.py",
        "for path, delta in values.items():",
        "for path, delta in list(values.items())[1:]:",
        "tests/core/test_equivariance.py",
    ),
    Mutant(
        "apply the threshold after the merge",
        f"{CORE}/adapter/handle.py",
        "values = {path: v.clone() for path, v in self.values().items()}",
        "values = {p: (d.v if getattr(d, 'v', d()).shape == d().shape else d()).detach().clone()"
        " for p, d in self.deltas().items()}",
        "tests/core/test_equivariance.py",
    ),
    Mutant(
        "drop the sign of the soft threshold",
        f"{CORE}/deltas/soft_threshold.py",
        ".relu_().copysign_(v)",
        ".relu_()",
        "tests/core/test_soft_threshold.py",
    ),
    Mutant(
        "turn the gradient of τ round",
        f"{CORE}/deltas/soft_threshold.py",
        "sign.abs(), -torch.dot",
        "sign.abs(), torch.dot",
        "tests/core/test_soft_threshold.py",
    ),
    Mutant(
        "forget that a forward pass is being recorded",
        f"{CORE}/deltas/base.py",
        "return torch.compiler.is_compiling() or get_proxy_mode() is not None",
        "return False",
        "tests/core/test_transforms.py",
    ),
    Mutant(
        "let copies share what the class knows",
        f"{CORE}/layers/injection.py",
        "    module.__class__ = patched._e3sparse_base",
        "    for name in ('weight', '_get_weights'):\n        if name in vars(patched):\n"
        "            delattr(patched, name)\n    module.__class__ = patched._e3sparse_base",
        "tests/core/test_handles.py tests/core/test_transforms.py",
    ),
    Mutant(
        "leave the deltas behind on removal",
        f"{CORE}/layers/injection.py",
        "del module._modules[SUBMODULE]",
        "pass",
        "tests/core/test_adapter.py",
    ),
    Mutant(
        "let TorchScript compile a patched layer",
        f"{CORE}/layers/injection.py",
        '        "__prepare_scriptable__": __prepare_scriptable__,\n',
        "",
        "tests/core/test_injection.py tests/core/test_transforms.py",
    ),
    Mutant(
        "lose the class on unpickling",
        f"{CORE}/layers/injection.py",
        '        "__reduce_ex__": __reduce_ex__,\n',
        "",
        "tests/core/test_injection.py tests/core/test_transforms.py",
    ),
    Mutant(
        "serve sums from before the step",
        f"{CORE}/layers/injection.py",
        "if len(made_of) == len(inputs) and all(map(operator.is_, made_of, inputs)):",
        "if True:",
        "tests/core/test_cached.py",
    ),
    Mutant(
        "use only the last of several adapters",
        f"{CORE}/layers/injection.py",
        "total = values if total is None else total + values",
        "total = values",
        "tests/core/test_several_adapters.py",
    ),
    Mutant(
        "add to external weights",
        f"{CORE}/layers/injection.py",
        "return weight if factor is None else weight * factor",
        "return weight if factor is None else weight + (factor - 1)",
        "tests/core/test_equivariance.py",
    ),
    Mutant(
        "forget the scale of a reweighted layer",
        f"{CORE}/layers/injection.py",
        "total = total * self.scale.to(total)",
        "pass",
        "tests/core/test_folding.py",
    ),
    Mutant(
        "fold ΔW instead of 1 + ΔW",
        f"{CORE}/layers/merging.py",
        "factor = 1 + delta",
        "factor = delta",
        "tests/core/test_equivariance.py",
    ),
    Mutant(
        "undo a merge to rounding only",
        f"{CORE}/layers/merging.py",
        "weight = base.setdefault(name, parameter.detach().clone()).to(parameter)",
        "weight = base.setdefault(name, parameter.detach().clone()).to(parameter) * 0.1 / 0.1",
        "tests/core/test_adapter.py",
    ),
    Mutant(
        "ship a merged model frozen",
        f"{CORE}/adapter/state.py",
        "weight.requires_grad_(self.requires_grad[parameter])",
        "pass",
        "tests/core/test_adapter.py",
    ),
    Mutant(
        "keep deltas in their own precision",
        f"{CORE}/adapter/state.py",
        "delta.to(dtype=like.dtype, device=like.device)",
        "pass",
        "tests/core/test_adapter.py tests/core/test_methods.py",
    ),
    Mutant(
        "leave a disabled adapter off",
        f"{CORE}/adapter/handle.py",
        "            self.active = was",
        "            pass",
        "tests/core/test_adapter.py",
    ),
    Mutant(
        "train on elements that no frame contains",
        f"{CORE}/adapter/schedule.py",
        "                delta.freeze(rows)",
        "                pass",
        "tests/core/test_species.py",
    ),
    Mutant(
        "forget elements that were frozen before",
        f"{CORE}/layers/delta.py",
        "rows if self.frozen is None else self.frozen | rows",
        "rows",
        "tests/core/test_species.py",
    ),
    Mutant(
        "ignore what is frozen",
        f"{CORE}/layers/delta.py",
        "return values if self.frozen is None else values.masked_fill(self.frozen, 0.0)",
        "return values",
        "tests/core/test_species.py",
    ),
    Mutant(
        "keep more entries than were asked for",
        f"{CORE}/deltas/base.py",
        "excess = int(torch.count_nonzero(keep)) - count",
        "excess = 0",
        "tests/core/test_budget.py",
    ),
    Mutant(
        "do not let pruned entries back",
        f"{CORE}/deltas/budget.py",
        "return grad, None",
        "return grad * 0, None",
        "tests/core/test_budget.py",
    ),
    Mutant(
        "start away from the base model",
        f"{CORE}/deltas/budget.py",
        "return BudgetDelta(layout, weight.new_zeros(layout.shape), groups)",
        "return BudgetDelta(layout, weight.new_zeros(layout.shape) + 1e-9, groups)",
        "tests/core/test_methods.py tests/core/test_budget.py",
    ),
    Mutant(
        "end below the sparsity that was asked for",
        f"{CORE}/deltas/budget.py",
        "return self.target_sparsity * (1 - left**3)",
        "return self.target_sparsity * (0.99 - left**3)",
        "tests/core/test_budget.py",
    ),
    Mutant(
        "let a schedule-free optimizer draw pruned entries back",
        f"{CORE}/deltas/budget.py",
        'return [v, *(state[name] for name in ("z", AVERAGE) if name in state)]',
        "return [v]",
        "tests/core/test_budget.py",
    ),
    Mutant(
        "leave a pruned entry where it was",
        f"{CORE}/deltas/budget.py",
        "scale.masked_fill_(kept & ~delta.keep, 0.0)",
        "scale.masked_fill_(kept & ~kept, 0.0)",
        "tests/core/test_budget.py",
    ),
    Mutant(
        "prune many entries at once",
        f"{CORE}/deltas/budget.py",
        "choices: int = Field(400, ge=1)",
        "choices: int = Field(40, ge=1)",
        "tests/core/test_budget.py",
    ),
    Mutant(
        "take the slices of a tensor one by one",
        f"{CORE}/layers/faster_products.py",
        "edges = sorted({0, width,",
        "edges = sorted({1, width,",
        "tests/core/test_faster_derivatives.py",
    ),
    Mutant(
        "scale a low-rank delta wrongly",
        f"{CORE}/deltas/low_rank.py",
        "self.scale = alpha / rank",
        "self.scale = 1.0",
        "tests/core/test_methods.py",
    ),
    Mutant(
        "choose a Fisher mask by the signed gradient",
        f"{CORE}/deltas/fixed_mask.py",
        "total += grad.square()",
        "total += grad",
        "tests/core/test_methods.py",
    ),
    Mutant(
        "draw from the global generator",
        f"{CORE}/adapter/patching.py",
        "generator = torch.Generator().manual_seed(seed)",
        "generator = torch.default_generator",
        "tests/core/test_methods.py",
    ),
    Mutant(
        "save values at shifted places",
        f"{CORE}/adapter/encoding.py",
        '.indices": indices.to(torch.int32)',
        '.indices": indices.to(torch.int32).roll(1)',
        "tests/core/test_adapter_file.py",
    ),
    Mutant(
        "load onto another base model",
        f"{CORE}/adapter/belonging.py",
        "if here_print != config.base_fingerprint:",
        "if False:",
        "tests/core/test_adapter_file_refusals.py",
    ),
    Mutant(
        "load onto another layout",
        f"{CORE}/adapter/belonging.py",
        "if here != entry:",
        "if False:",
        "tests/core/test_adapter_file_refusals.py",
    ),
    Mutant(
        "load values that are not finite",
        f"{CORE}/adapter/encoding.py",
        "    if not torch.isfinite(values).all():",
        "    if False:",
        "tests/core/test_adapter_file_refusals.py tests/core/test_adapter_file_damage.py",
    ),
    Mutant(
        "leave weights out of the fingerprint",
        f"{CORE}/adapter/fingerprint.py",
        "digest.update(as_float32(parameter))",
        "pass",
        "tests/core/test_adapter_file_refusals.py",
    ),
    Mutant(
        "leave the tensors out of the digest",
        f"{CORE}/adapter/stored.py",
        "hashlib.sha256(text.encode()), hashlib.sha256(data))",
        "hashlib.sha256(text.encode()), hashlib.sha256(b''))",
        "tests/core/test_attacks_on_folders.py",
    ),
    Mutant(
        "leave the config out of the digest",
        f"{CORE}/adapter/stored.py",
        "(hashlib.sha256(text.encode()), hashlib",
        "(hashlib.sha256(b''), hashlib",
        "tests/core/test_attacks_on_folders.py",
    ),
    Mutant(
        "believe a new file that has lost its digest",
        f"{CORE}/adapter/stored.py",
        "if config.digest is None and config.format_version == 1:",
        "if config.digest is None:",
        "tests/core/test_attacks_on_folders.py",
    ),
    Mutant(
        "ask torch for shapes that nothing has",
        f"{CORE}/adapter/stored.py",
        "        entries *= max(length, 1)",
        "        entries *= length",
        "tests/core/test_attacks_on_folders.py",
    ),
    Mutant(
        "load onto other atomic energies",
        f"{CORE}/adapter/identity.py",
        "buffers[prefix + name] = _said(buffer)",
        "pass",
        "tests/core/test_base_identity.py",
    ),
    Mutant(
        "load onto another cutoff",
        f"{CORE}/adapter/identity.py",
        "            for name, value in _attributes(module):\n"
        "                numbers[prefix + name] = value\n",
        "",
        "tests/core/test_base_identity.py",
    ),
    Mutant(
        "take running statistics of an adapter for the base model's",
        f"{CORE}/adapter/saving.py",
        "state.identity.without(statistics)",
        "state.identity",
        "tests/core/test_base_identity.py",
    ),
    Mutant(
        "keep coefficients of 7 digits",
        f"{CORE}/layers/clebsch_gordan.py",
        "            buffer.copy_(exact)",
        "            pass",
        "tests/symmetry/test_modules.py",
    ),
    Mutant(
        "take moments for polar vectors",
        f"{CORE}/symmetry/rotations.py",
        "return self.det * self.act(vectors)",
        "return self.act(vectors)",
        "tests/symmetry/test_rotations.py",
    ),
    Mutant(
        "let what is not a number pass",
        f"{CORE}/symmetry/search.py",
        "if tolerance > 0.0 and math.isfinite(error) else math.inf",
        "if tolerance > 0.0 and math.isfinite(error) else 0.0",
        "tests/symmetry/test_search.py",
    ),
    Mutant(
        "turn the sign of SevenNet's stress",
        f"{SEVENNET}/backend.py",
        "stress=-virial[",
        "stress=virial[",
        "tests/sevennet/test_symmetry.py",
    ),
    Mutant(
        "exchange yz and zx of SevenNet's stress",
        f"{SEVENNET}/backend.py",
        "[[0, 3, 5], [3, 1, 4], [5, 4, 2]]",
        "[[0, 3, 4], [3, 1, 5], [4, 5, 2]]",
        "tests/sevennet/test_symmetry.py",
    ),
    Mutant(
        "write the old version into a SevenNet file",
        f"{SEVENNET}/backend.py",
        '{**self.config, "version": sevenn.__version__}',
        "{**self.config}",
        "tests/sevennet/test_backend.py",
    ),
    Mutant(
        "take the wrong axis for SevenNet's species",
        f"{SEVENNET}/backend.py",
        '.fc_tensor_product": 1',
        '.fc_tensor_product": 0',
        "tests/sevennet/test_backend.py tests/sevennet/test_training.py",
    ),
    Mutant(
        "forget that products of odd streams are even in time",
        f"{CORE}/magnetism/irreps.py",
        "one.t * two.t) for degree",
        "two.t) for degree",
        "tests/core/test_spin_layers.py",
    ),
    Mutant(
        "embed spins as polar vectors",
        f"{CORE}/magnetism/irreps.py",
        "SPIN = Irrep(1, 1, ODD)",
        "SPIN = Irrep(1, -1, ODD)",
        "tests/core/test_spin_layers.py",
    ),
    Mutant(
        "let atoms without a spin keep the constant harmonic",
        f"{CORE}/magnetism/embedding.py",
        "torch.cat([size * values[:, :1]",
        "torch.cat([values[:, :1]",
        "tests/core/test_spin_layers.py",
    ),
    Mutant(
        "let edges turn spins without spin-orbit coupling",
        f"{CORE}/magnetism/block.py",
        "lmax = settings.lmax if settings.spin_orbit else 0",
        "lmax = settings.lmax",
        "tests/core/test_spin_layers.py",
    ),
    Mutant(
        "keep the spin layers on where there are no spins",
        f"{CORE}/magnetism/potential.py",
        "        if all(s is None for s in spins):\n            return SpinBatch(batch, None)\n",
        "",
        "tests/sevennet/test_magnetism.py",
    ),
    Mutant(
        "leave the magnetic energy out of the forces",
        f"{CORE}/magnetism/potential.py",
        "            energy.sum(), leaves, create_graph",
        "            features.energy.sum(), leaves, create_graph",
        "tests/sevennet/test_magnetism.py",
    ),
    Mutant(
        "put spin layers on any backbone",
        f"{CORE}/magnetism/file.py",
        "if (off > allowed).any():",
        "if False:",
        "tests/sevennet/test_magnetism.py",
    ),
    Mutant(
        "read spin layers in float32",
        f"{CORE}/magnetism/file.py",
        "layers = SpinBlock(settings).to(potential.dtype)",
        "layers = SpinBlock(settings)",
        "tests/sevennet/test_magnetism.py",
    ),
    Mutant(
        "take errors of further quantities in the unit of the label",
        f"{CORE}/frames/evaluation.py",
        'f"{quantity.name}_mae": (mean * quantity.error_scale, off.size)',
        'f"{quantity.name}_mae": (mean, off.size)',
        "tests/third_party/test_quantities.py",
    ),
    Mutant(
        "batch a further label of each structure as one of each atom",
        f"{CORE}/frames/batches.py",
        "rows = len(frame.atoms) if quantity.per_atom else 1",
        "rows = len(frame.atoms)",
        "tests/third_party/test_quantities.py",
    ),
    Mutant(
        "let a kind apply everywhere",
        f"{CORE}/layers/kinds.py",
        "if kind is not None and (kind.applies is None or kind.applies(model, path)):",
        "if kind is not None:",
        "tests/core/test_new_kinds.py",
    ),
    Mutant(
        "reweight the argument beside the weight",
        f"{CORE}/layers/injection.py",
        ".index(name) - 1  # without self",
        ".index(name) - 2  # without self",
        "tests/core/test_new_kinds.py",
    ),
    Mutant(
        "leave moments out of the loss",
        f"{CORE}/training/losses.py",
        "if label is None or self.weight(name) == 0:",
        'if label is None or self.weight(name) == 0 or name == "moments":',
        "tests/sevennet/test_magnetic_training.py",
    ),
    Mutant(
        "remove what a run did not write",
        f"{CORE}/output_folders.py",
        "    for file in listing.files:\n        path = folder / file\n        if not",
        "    for file in [p.relative_to(folder) for p in folder.rglob('*')]:\n"
        "        path = folder / file\n        if not",
        "tests/core/test_output_folders.py",
    ),
    Mutant(
        "follow links out of a run folder",
        f"{CORE}/output_folders.py",
        "not _through_link(folder, path) and (path.is_symlink()",
        "(path.is_symlink()",
        "tests/core/test_output_folders.py",
    ),
    Mutant(
        "take a folder that does not exist for a new one",
        f"{CORE}/output_folders.py",
        "full = folder.resolve()  #",
        "full = folder  #",
        "tests/core/test_output_folders.py",
    ),
    Mutant(
        "go on with other training frames",
        f"{CORE}/training/run_folder.py",
        "if inputs.get(name) != listing.inputs[name]",
        "if name not in inputs",
        "tests/sevennet/test_run_safety.py",
    ),
    Mutant(
        "save the best model after the averaged weights have gone",
        f"{CORE}/training/checkpoints.py",
        '"save_on_train_epoch_end": False}',
        '"save_on_train_epoch_end": True}',
        "tests/sevennet/test_training.py",
    ),
    Mutant(
        "replay without a gradient",
        f"{CORE}/training/module.py",
        "loss + self.replay.weight * drift",
        "loss + self.replay.weight * drift.detach()",
        "tests/sevennet/test_replay.py",
    ),
    Mutant(
        "label random structures before they are moved",
        f"{CORE}/training/replay.py",
        "frames[n] = frame if step == steps[n] else replace(frame, atoms=_descended(frame))",
        "frames[n] = replace(frame, atoms=_descended(frame))",
        "tests/sevennet/test_replay.py",
    ),
    Mutant(
        "draw the same structures in every step",
        f"{CORE}/training/replay.py",
        "default_rng([self.seed, step, rank])",
        "default_rng([self.seed, rank])",
        "tests/sevennet/test_replay.py",
    ),
    Mutant(
        "choose entries anew when a run goes on",
        f"{CORE}/training/module.py",
        "if changed and self.adapter is not None:",
        "if self.adapter is not None:",
        "tests/sevennet/test_training.py",
    ),
    Mutant(
        "begin an epoch anew when a run goes on",
        f"{CORE}/training/data.py",
        "islice(super().__iter__(), done * self.accumulate * self.batch_size, None)",
        "islice(super().__iter__(), 0, None)",
        "tests/sevennet/test_training.py",
    ),
    Mutant(
        "let a model file call what it may only name",
        f"{CORE}/potentials/trust.py",
        'if module == "numpy" or name in found.called:',
        'if module == "numpy":',
        "tests/core/test_trust.py",
    ),
    Mutant(
        "take any code of a graph for arithmetic",
        f"{CORE}/potentials/trust.py",
        "for s in found.sources if not _arithmetic(s)]",
        "for s in found.sources if not s]",
        "tests/core/test_trust.py",
    ),
    Mutant(
        "do not look at the files that a config names",
        f"{CORE}/potentials/trust.py",
        "for other in sorted(found.files):",
        "for other in ():",
        "tests/core/test_trust.py",
    ),
    Mutant(
        "read SevenNet files as any pickle",
        f"{SEVENNET}/reading.py",
        'options | {"weights_only": True}',
        "options",
        "tests/sevennet/test_hostile_models.py",
    ),
    Mutant(
        "take any file for what a run wrote",
        f"{CORE}/output_folders.py",
        "and digest(path) != written:",
        "and digest(path) == '':",
        "tests/core/test_run_folder.py",
    ),
    Mutant(
        "go on with the checkpoint of another run",
        f"{CORE}/training/run_folder.py",
        "if run is not None and checkpoint.get(RUN) != run:",
        "if run is not None and RUN not in checkpoint:",
        "tests/sevennet/test_run_safety.py tests/core/test_run_folder.py",
    ),
    Mutant(
        "let an import see the signal that stops it",
        f"{CORE}/__main__.py",
        "os._exit(128 + number)",
        "raise SystemExit(number)",
        "tests/core/test_ending.py",
    ),
)


def apply(mutant: Mutant, tree: Path) -> None:
    """Change the one place in a tree."""
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"'{mutant.name}': {text.count(mutant.old)} places in {mutant.file} read "
            f"{mutant.old!r}, expected 1. The code has moved: mend the table of mutants."
        )
    path.write_text(text.replace(mutant.old, mutant.new))


def first_failure(tree: Path, tests: str) -> str | None:
    """Return the first test that fails in a tree."""
    environment = dict(os.environ, PYTHONPATH=f"{tree}{os.pathsep}{tree / 'integrations'}")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider"),
        *("-m", "not slow and not nightly", *tests.split()),
    ]
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    named = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, flags=re.MULTILINE)
    if named:
        return named.group(1)
    if done.returncode != 0:
        raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return None


def caught_by(mutant: Mutant) -> str | None:
    """Return the test that notices a mutant."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in TREES:
            source = ROOT / name
            if source.is_dir():
                junk = shutil.ignore_patterns("__pycache__", "sample_data", ".hypothesis")
                shutil.copytree(source, tree / name, ignore=junk)
            else:
                shutil.copy(source, tree / name)
        apply(mutant, tree)
        return first_failure(tree, mutant.tests) or first_failure(tree, "tests/core tests/symmetry")


def main() -> None:
    """Run the mutants that the command line names."""
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    rows, survivors = [], []
    for mutant in chosen:
        start = time.monotonic()
        test = caught_by(mutant)
        print(f"{mutant.name}: {test or 'SURVIVED'} ({time.monotonic() - start:.0f} s)", flush=True)
        rows.append(f"| {mutant.name} | {mutant.file} | {test or '**none**'} |")
        if test is None:
            survivors.append(mutant.name)
    if not words:
        head = (
            f"# Mutants\n\n`make mutants` broke the code in {len(MUTANTS)} ways, one at a time; "
            f"{len(MUTANTS) - len(survivors)} were noticed. The first test that failed:\n\n"
            "| what was broken | where | noticed by |\n|---|---|---|\n"
        )
        REPORT.write_text(head + "\n".join(rows) + "\n")
    if survivors:
        raise SystemExit(f"Not noticed: {', '.join(survivors)}.")


if __name__ == "__main__":
    main()
