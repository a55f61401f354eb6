"""The check that float32 says what float64 says."""

import torch
from ase import Atoms
from hypothesis import strategies as st

from e3sparse.symmetry.check import Check, Drawing, compare
from e3sparse.symmetry.search import Case, Errors
from e3sparse.symmetry.subjects import Subject


def _cases(drawing: Drawing) -> st.SearchStrategy[Case]:
    return st.fixed_dictionaries({"atoms": drawing.structures()})


def _precision(subject: Subject, atoms: Atoms) -> Errors:
    assert subject.single is not None
    return compare(subject.single(atoms), subject(atoms))


check_dtype = Check(
    "dtype",
    "float32 says what float64 says, to the digits that it has",
    _cases,
    _precision,
    lambda subject: None if subject.single is not None else "It was not given in float32 too.",
    precision=torch.float32,
)
