"""Small OUTCAR and vasprun.xml files: the lines that readers look for, written by hand.

They are not from any calculation. What stands between those lines in a real file is left out; the
order of what is there is VASP's.
"""

from pathlib import Path

import numpy as np
from published import KBAR, Known

ORDER = ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))
"""Of the stress components in an OUTCAR: XX YY ZZ XY YZ ZX."""

NELM = 4


def write_outcar(
    path: Path, frames: list[Known], *, noncollinear: bool = False, order=ORDER, unconverged=()
) -> Path:
    """Write ionic steps as an OUTCAR of VASP 6; stress in kbar, positive under compression."""
    path.parent.mkdir(parents=True, exist_ok=True)
    symbols = list(frames[0].atoms.symbols)
    kinds = list(dict.fromkeys(symbols))
    lines = [
        " vasp.6.3.0 20Jan22 (build Jan 01 2022 00:00:00) complex",
        *(f" POTCAR:    PAW_PBE {kind} 06Sep2000" for kind in 2 * kinds),
        "   ISPIN  =      2    spin polarized calculation?",
        f"   LNONCOLLINEAR =      {'T' if noncollinear else 'F'} non collinear calculations",
        "   ions per type =     " + " ".join(f"{symbols.count(kind):5d}" for kind in kinds),
    ]
    for step, frame in enumerate(frames, start=1):
        lines += [f"----- Iteration {step:6d}(   1)  -----"]
        reached = (
            "EDIFF was not reached (unconverged)"
            if step - 1 in unconverged
            else ("because EDIFF is reached")
        )
        lines += [f"------------------------ aborting loop {reached} ---", *_moments(frame)]
        stress = [-frame.stress[i, j] / KBAR for i, j in order]
        lines += [
            "  FORCE on cell =-STRESS in cart. coord.  units (eV):",
            "  in kB     " + "".join(f"{s:12.5f}" for s in stress),
            "      direct lattice vectors                 reciprocal lattice vectors",
            *(_row([*a, *b], 13, 9) for a, b in zip(*_lattices(frame), strict=True)),
            " POSITION                                       TOTAL-FORCE (eV/Angst)",
            " " + 83 * "-",
            *(
                _row(x, 13, 5) + "    " + _row(f, 14, 6)
                for x, f in zip(frame.atoms.positions, frame.forces, strict=True)
            ),
            " " + 83 * "-",
            "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)",
            "  ---------------------------------------------------",
            f"  free  energy   TOTEN  = {frame.energy:18.8f} eV",
            "",
            f"  energy  without entropy= {frame.energy + 0.02:17.8f}  energy(sigma->0) = "
            f"{frame.energy + 0.01:17.8f}",
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def _moments(frame: Known) -> list[str]:
    if frame.moments is None:
        return []
    n = len(frame.atoms)
    columns = frame.moments.reshape(n, -1)
    lines = []
    for axis in range(columns.shape[1]):
        lines += [
            f" magnetization ({'xyz'[axis]})",
            "",
            "# of ion       s       p       d       tot",
            "------------------------------------------",
            *(f"{i + 1:5d}  " + _row([0, 0, m, m], 8, 3) for i, m in enumerate(columns[:, axis])),
        ]
        if n > 1:  # of one atom VASP writes no sum
            total = columns[:, axis].sum()
            lines += [
                "--------------------------------------------------",
                "tot    " + _row([0, 0, total, total], 8, 3),
            ]
        lines += ["", ""] if n == 1 else ["", "", ""]
    return lines


def _lattices(frame: Known) -> tuple[np.ndarray, np.ndarray]:
    return frame.atoms.cell[:], np.linalg.inv(frame.atoms.cell[:]).T


def _row(values, width: int, digits: int) -> str:
    return "".join(f"{value:{width}.{digits}f}" for value in values)


def write_vasprun(path: Path, frames: list[Known], *, unconverged=()) -> Path:
    """Write ionic steps as a vasprun.xml; those with NELM electronic steps are not converged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    symbols = frames[0].atoms.symbols
    atoms = "".join(f"<rc><c>{symbol} </c><c>1</c></rc>" for symbol in symbols)
    path.write_text(
        '<?xml version="1.0" encoding="ISO-8859-1"?><modeling><kpoints>'
        f"{_varray('kpointlist', [[0, 0, 0]])}{_varray('weights', [[1]])}</kpoints>"
        '<parameters><separator name="electronic"><i name="PSTRESS">0.0</i>'
        f'<i type="int" name="NELM">{NELM}</i></separator>'
        f'</parameters><atominfo><array name="atoms"><set>{atoms}</set></array></atominfo>'
        f'<structure name="initialpos">{_structure(frames[0])}</structure>'
        + "".join(
            _calculation(frame, NELM if i in unconverged else NELM - 1)
            for i, frame in enumerate(frames)
        )
        + "</modeling>"
    )
    return path


def _calculation(frame: Known, electronic: int) -> str:
    energies = (
        f'<energy><i name="e_fr_energy">{frame.energy:.8f}</i>'
        f'<i name="e_wo_entrp">{frame.energy + 0.02:.8f}</i>'
        f'<i name="e_0_energy">{frame.energy + 0.01:.8f}</i></energy>'
    )
    return (
        f"<calculation>{electronic * f'<scstep>{energies}</scstep>'}"
        f"<structure>{_structure(frame)}</structure>"
        f"{_varray('forces', frame.forces)}{_varray('stress', -frame.stress / KBAR)}{energies}"
        "</calculation>"
    )


def _structure(frame: Known) -> str:
    fractions = frame.atoms.cell.scaled_positions(frame.atoms.positions)
    return (
        f"<crystal>{_varray('basis', frame.atoms.cell[:])}</crystal>"
        f"{_varray('positions', fractions)}"
    )


def _varray(name: str, rows) -> str:
    inner = "".join("<v>" + " ".join(f"{x:.10f}" for x in row) + "</v>" for row in rows)
    return f'<varray name="{name}">{inner}</varray>'
