"""One test for each check of the suite, on the model of `--e3sparse-model`."""

import pytest
import torch

from e3sparse.potentials.structure_files import read_structures
from e3sparse.symmetry import CHECKS, Subject
from e3sparse.symmetry.loading import load_subject


@pytest.fixture(scope="session")
def e3sparse_subject(request: pytest.FixtureRequest) -> Subject:
    """The model that was named, in the precision that was asked for."""
    option = request.config.getoption
    return load_subject(
        option("e3sparse_model"),
        backend=option("e3sparse_backend"),
        adapter=option("e3sparse_adapter"),
        head=option("e3sparse_head"),
        device=option("e3sparse_device"),
        dtype=getattr(torch, option("e3sparse_dtype")),
    )


@pytest.mark.parametrize("check", CHECKS)
def test_symmetry(check: str, e3sparse_subject: Subject, request: pytest.FixtureRequest) -> None:
    option = request.config.getoption
    path = option("e3sparse_frames")
    frames = [] if path is None else read_structures(path, e3sparse_subject.numbers)
    result = CHECKS[check](
        e3sparse_subject,
        examples=option("e3sparse_examples"),
        seed=option("e3sparse_seed"),
        frames=frames,
    )
    if result.status in ("skipped", "not claimed"):
        pytest.skip(str(result))
    if not result.ok:
        pytest.fail(result.message(), pytrace=False)
