"""Small data sets written in the layouts of published ones, from known frames."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units

KBAR = 0.1 * units.GPa
KCAL = units.kcal / units.mol
DIGITS = {"atol": 2e-8, "rtol": 1e-9}  # extended XYZ has eight decimals


@dataclass
class Known:
    """What a reader must give back: eV, eV/Å, eV/Å³ (positive under tension), μ_B."""

    atoms: Atoms
    energy: float
    forces: np.ndarray
    stress: np.ndarray | None = None
    moments: np.ndarray | None = None
    magnetic_forces: np.ndarray | None = None


def known(
    seed: int, symbols: str = "NiO", *, periodic: bool = True, moments: str | None = None
) -> Known:
    """Draw a structure and labels; `moments` is None, "collinear" or "vectors"."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(symbols)
    atoms.positions = rng.uniform(0, 4, (len(atoms), 3))
    stress = None
    if periodic:
        atoms.cell = np.diag(rng.uniform(3.5, 5, 3)) + rng.uniform(-0.5, 0.5, (3, 3))
        atoms.pbc = True
        stress = rng.normal(0, 0.05, (3, 3))
        stress += stress.T
    magnetic = atoms.symbols == "Ni"
    values = rng.normal(0, 2, (len(atoms), 3)) * magnetic[:, None]
    return Known(
        atoms,
        energy=float(rng.normal(-20, 5)),
        forces=rng.normal(0, 1, (len(atoms), 3)),
        stress=stress,
        moments={None: None, "collinear": values[:, 2], "vectors": values}[moments],
        magnetic_forces=rng.normal(0, 0.01, values.shape) if moments == "vectors" else None,
    )


def mptrj_frame(frame: Known) -> dict:
    """Return a frame as MPtrj's JSON has it: a pymatgen structure; stress in kbar, VASP's sign."""
    n = len(frame.atoms)
    return {
        "structure": {
            "@module": "pymatgen.core.structure",
            "@class": "Structure",
            "charge": None,
            "lattice": {"matrix": frame.atoms.cell.tolist(), "volume": frame.atoms.cell.volume},
            "sites": [
                {"species": [{"element": symbol, "occu": 1}], "abc": abc.tolist(), "label": symbol}
                for symbol, abc in zip(
                    frame.atoms.symbols,
                    frame.atoms.cell.scaled_positions(frame.atoms.positions),
                    strict=True,
                )
            ],
        },
        "uncorrected_total_energy": frame.energy,
        "corrected_total_energy": frame.energy - 1.5,
        "energy_per_atom": (frame.energy - 1.5) / n,
        "ef_per_atom": -0.3,
        "force": frame.forces.tolist(),
        "stress": None if frame.stress is None else (-frame.stress / KBAR).tolist(),
        "magmom": None if frame.moments is None else frame.moments.tolist(),
        "bandgap": 0.7,
        "mp_id": "mp-0",
    }


def write_mptrj(path: Path, materials: dict[str, list[Known]]) -> Path:
    """Write materials with their frames as MPtrj's JSON."""
    path.write_text(
        json.dumps(
            {
                mp_id: {f"{mp_id}-0-{i}": mptrj_frame(frame) for i, frame in enumerate(frames)}
                for mp_id, frames in materials.items()
            }
        )
    )
    return path


def write_deepmd(folder: Path, frames: list[Known], *, sets: int = 1) -> Path:
    """Write frames of one formula as a DeePMD system."""
    symbols = list(frames[0].atoms.symbols)
    names = sorted(set(symbols))
    folder.mkdir(parents=True)
    (folder / "type_map.raw").write_text("\n".join(names) + "\n")
    (folder / "type.raw").write_text("\n".join(str(names.index(s)) for s in symbols) + "\n")
    periodic = bool(frames[0].atoms.pbc.all())
    if not periodic:
        (folder / "nopbc").touch()
    for number, part in enumerate(np.array_split(np.arange(len(frames)), sets)):
        chosen = [frames[i] for i in part]
        arrays = {
            "coord": [f.atoms.positions for f in chosen],
            "energy": [f.energy for f in chosen],
            "force": [f.forces for f in chosen],
        }
        if periodic:
            arrays["box"] = [f.atoms.cell[:] for f in chosen]
        if frames[0].stress is not None:
            arrays["virial"] = [-f.stress * f.atoms.cell.volume for f in chosen]
        if frames[0].moments is not None:
            arrays["spin"] = [f.moments for f in chosen]
            arrays["force_mag"] = [f.magnetic_forces for f in chosen]
        (folder / f"set.{number:03}").mkdir()
        for key, values in arrays.items():
            array = np.asarray(values)
            array = array if array.ndim == 1 else array.reshape(len(chosen), -1)
            np.save(folder / f"set.{number:03}" / f"{key}.npy", array)
    return folder


def write_npz(path: Path, frames: list[Known], keys: tuple[str, str, str, str], **more) -> Path:
    """Write frames of one molecule under the keys of rMD17 or MD17, in kcal/mol."""
    values = (
        frames[0].atoms.numbers,
        np.array([f.atoms.positions for f in frames]),
        np.array([f.energy for f in frames]) / KCAL,
        np.array([f.forces for f in frames]) / KCAL,
    )
    np.savez(path, **dict(zip(keys, values, strict=True)), **more)
    return path


def assert_same(frame: Atoms, known: Known, **digits) -> None:
    """Compare everything that a converted frame must have kept."""
    digits = DIGITS | digits
    assert list(frame.symbols) == list(known.atoms.symbols)
    assert list(frame.pbc) == list(known.atoms.pbc)
    np.testing.assert_allclose(frame.positions, known.atoms.positions, **digits)
    np.testing.assert_allclose(frame.cell[:], known.atoms.cell[:], **digits)
    np.testing.assert_allclose(frame.info["REF_energy"], known.energy, **digits)
    np.testing.assert_allclose(frame.arrays["REF_forces"], known.forces, **digits)
    for label, expected in (
        (frame.info.get("REF_stress"), known.stress),
        (frame.arrays.get("REF_magmom"), known.moments),
        (frame.arrays.get("REF_magforces"), known.magnetic_forces),
    ):
        assert (label is None) == (expected is None)
        if expected is not None:
            np.testing.assert_allclose(label, expected, **digits)
    np.testing.assert_allclose(frame.arrays["spin"], _directions(known), **digits)


def _directions(known: Known) -> np.ndarray:
    """Return unit vectors where the moment is above 0.1 μ_B, atom by atom."""
    spins = np.zeros((len(known.atoms), 3))
    for i, moment in enumerate([] if known.moments is None else known.moments):
        vector = np.array([0, 0, moment]) if np.ndim(moment) == 0 else np.asarray(moment)
        if np.linalg.norm(vector) > 0.1:
            spins[i] = vector / np.linalg.norm(vector)
    return spins
