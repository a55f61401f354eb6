"""Structures and labels that the tests of all backends share."""

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, molecule


def structures():
    """A molecule and a crystal, both away from equilibrium."""
    water = molecule("H2O")
    water.rattle(0.05, seed=1)
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    salt.rattle(0.1, seed=2)
    return [water, salt]


def labelled(count, seed=0, name="CH3OH"):
    """Frames of a rattled molecule, with labels of a harmonic toy surface."""
    rng = np.random.default_rng(seed)
    rest = molecule(name)
    frames = []
    for _ in range(count):
        atoms = rest.copy()
        shift = rng.normal(scale=0.08, size=(len(atoms), 3))
        atoms.positions += shift
        atoms.info["REF_energy"] = float(5.0 * (shift**2).sum() - 12.0 * len(atoms))
        atoms.arrays["REF_forces"] = -10.0 * shift
        frames.append(atoms)
    return frames


def splits(folder, counts=(12, 4, 4)):
    """Write a train, a valid and a test file of labelled frames; returns their paths."""
    paths = {}
    for seed, (split, count) in enumerate(zip(("train", "valid", "test"), counts, strict=True)):
        paths[split] = folder / f"{split}.xyz"
        ase.io.write(paths[split], labelled(count, seed))
    return paths


def isolated(**energies):
    """Isolated atoms as they stand in MACE's files: an energy, no forces, no cell."""
    return [
        Atoms(symbol, info={"REF_energy": energy, "config_type": "IsolatedAtom"})
        for symbol, energy in energies.items()
    ]


def with_isolated(files, folder, **energies):
    """Write the frames of each file and isolated atoms to files of the same names."""
    for path in files.values():
        ase.io.write(folder / path.name, isolated(**energies) + ase.io.read(path, index=":"))
    return {name: folder / path.name for name, path in files.items()}
