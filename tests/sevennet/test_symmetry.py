"""The suite on SevenNet models: base, adapted, merged, and loaded again; and its two front ends."""

import json
import subprocess
import sys

import pytest
import torch
from ase.build import bulk, molecule
from ase.io import write
from potentials import assert_the_states_are_two_models, gate_or_night
from sevenn.calculator import SevenNetCalculator
from support import load

import e3sparse
from e3sparse import symmetry
from e3sparse.symmetry import CHECKS, PotentialSubject
from e3sparse.symmetry.loading import load_subject

MAGNETIC = {"time reversal", "spin rotation", "magnetic forces"}
STATES = ("base", "adapted", "merged", "loaded", "restored")


def large_deltas(potential, targets, seed=1):
    """Patch with a dense ΔW of a quarter of the spread of each layer's own weights.

    With half of it SevenNet-0 is so scrambled that float32 loses all digits but one.
    """
    adapter = potential.patch(targets, "dense")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, delta in adapter.deltas().items():
            spread = 0.25
            if adapter.layouts[path].parameter is not None:
                spread *= float(potential.module.get_submodule(path)._parameters["weight"].std())
            (v,) = delta.parameters()
            drawn = torch.randn(v.shape, generator=generator, dtype=torch.float64)
            v.copy_(spread * drawn)
    return adapter


def in_state(model, state, targets, dtype, folder):
    """Return a potential in one state of an adapter's life."""
    potential = load(model, dtype)
    if state == "base":
        return potential
    adapter = large_deltas(potential, targets)
    if state == "merged":
        e3sparse.merge(potential.module)
    elif state == "restored":
        adapter.merge()
        adapter.restore()
    elif state == "loaded":
        adapter.save_pretrained(folder)
        potential = load(model, dtype)
        potential.load_adapter(folder)
    return potential


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Make a subject of float64 with its twin in float32; each is made once."""
    made = {}

    def make(model, state, targets):
        if (model, state) not in made:
            folder = tmp_path_factory.mktemp("adapter")
            pair = [
                in_state(model, state, targets, dtype, folder)
                for dtype in (torch.float64, torch.float32)
            ]
            made[model, state] = PotentialSubject(*pair)
        return made[model, state]

    return make


def assert_same(result, parity):
    assert result.ok, str(result)
    if result.check in MAGNETIC:
        assert result.status == "skipped"
    elif result.check == "inversion" and not parity:
        assert result.status == "not claimed"
    else:
        assert result.status == "passed"
        assert result.cases >= 20


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("state", gate_or_night(STATES, {"adapted"}))
def test_a_small_o3_model_in_every_state(subjects, tiny_checkpoint, state, check, seed):
    subject = subjects(tiny_checkpoint, state, "all")
    assert_same(CHECKS[check](subject, seed=seed), parity=True)
    single = CHECKS[check](subject.single, seed=seed)
    if check != "dtype":
        assert_same(single, parity=True)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("state", gate_or_night(STATES, {"adapted"}))
def test_sevennet_0(subjects, state, check, seed):
    subject = subjects("7net-0", state, "all")
    assert_same(CHECKS[check](subject, seed=seed, max_atoms=12), parity=False)


def test_states_that_are_one_model(subjects, tiny_checkpoint):
    assert_the_states_are_two_models(lambda state: subjects(tiny_checkpoint, state, "all"))
    assert_the_states_are_two_models(lambda state: subjects(tiny_checkpoint, state, "all").single)


@pytest.mark.nightly
@pytest.mark.parametrize("check", ["rotation", "inversion"])
@pytest.mark.parametrize("state", ["base", "adapted", "merged"])
@pytest.mark.parametrize("model", ["tiny", "7net-0"])
def test_a_thousand_elements_of_o3(subjects, tiny_checkpoint, model, state, check, seed):
    subject = subjects(tiny_checkpoint if model == "tiny" else model, state, "all")
    found = CHECKS[check](subject, examples=1000, seed=seed, max_atoms=12)
    assert_same(found, parity=model == "tiny")


def test_the_deltas_are_large(subjects, tiny_checkpoint):
    atoms = molecule("CH3CH2OH")
    for model in (tiny_checkpoint, "7net-0"):
        base, adapted, merged = (
            subjects(model, s, "all")(atoms) for s in ("base", "adapted", "merged")
        )
        assert abs(adapted.forces - base.forces).max() > 0.1
        assert abs(adapted.forces - merged.forces).max() < 1e-9


def test_a_merged_file_of_float32_is_exact_in_float64(tiny_checkpoint, tmp_path):
    potential = load(tiny_checkpoint)
    large_deltas(potential, "all")
    e3sparse.merge(potential.module)
    potential.save(tmp_path / "merged.pth")
    result = symmetry.check_rotation(load(tmp_path / "merged.pth", torch.float64))
    assert result.error < 1e-12


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_frameworks_own_calculator(tiny_checkpoint):
    calculator = SevenNetCalculator(str(tiny_checkpoint), device="cpu")
    subject = symmetry.CalculatorSubject(
        calculator, numbers=[1, 6, 8], cutoff=4.0, dtype=torch.float32
    )
    results = list(symmetry.run(subject, examples=5, max_atoms=8))
    assert [str(result) for result in results if not result.ok] == []


# The command -----------------------------------------------------------------------------------


@pytest.fixture
def broken(tiny_checkpoint, monkeypatch):
    """A model whose forces are 1 % too large."""
    from e3sparse_sevennet.backend import SevenNetPotential

    honest = SevenNetPotential.forward

    def forward(self, batch):
        out = honest(self, batch)
        return out._replace(forces=1.01 * out.forces)

    monkeypatch.setattr(SevenNetPotential, "forward", forward)
    return tiny_checkpoint


def test_the_command_passes_a_good_model(run, tiny_checkpoint, tmp_path):
    frames = tmp_path / "mine.xyz"
    write(frames, [molecule("H2O"), bulk("NaCl", "rocksalt", a=5.6)])
    potential = load(tiny_checkpoint)
    large_deltas(potential, "linear").save_pretrained(tmp_path / "adapter")
    report = tmp_path / "report.json"
    code, printed, _ = run(
        "check", tiny_checkpoint, "--adapter", tmp_path / "adapter", "--frames", frames,
        "--examples", 3, "--max-atoms", 6, "--json", report,
    )  # fmt: skip
    assert code == 0
    assert "rotation" in printed
    assert "It reads no spins" in printed
    said = json.loads(report.read_text())
    assert said["ok"]
    assert [result["check"] for result in said["results"]] == list(CHECKS)
    statuses = {result["check"]: result["status"] for result in said["results"]}
    assert statuses["inversion"] == statuses["dtype"] == "passed"


def test_the_command_fails_a_broken_model(run, broken, tmp_path, few_shrinks):
    report = tmp_path / "report.json"
    code, printed, _ = run("check", broken, "--examples", 3, "--max-atoms", 6, "--json", report)
    assert code == 1
    assert "Broken: forces." in printed
    assert "atoms = Atoms(" in printed
    said = json.loads(report.read_text())
    assert not said["ok"]
    (failed,) = [result for result in said["results"] if result["status"] == "failed"]
    assert failed["check"] == "forces"
    assert 100 * failed["tolerance"] < failed["error"] <= 0.01
    assert set(failed["worst"]["atoms"]) == {"numbers", "positions", "cell", "pbc"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--dtype", "float16"), "--dtype is float32 or float64, not 'float16'"),
        (("--frames", "nowhere.xyz"), "There is no file nowhere.xyz"),
        (("--adapter", "nowhere"), "nowhere"),
    ],
)
def test_the_command_refuses(run, tiny_checkpoint, arguments, says):
    code, _, printed = run("check", tiny_checkpoint, *arguments)
    assert code == 2
    assert says in printed


# The plugin ------------------------------------------------------------------------------------


@pytest.fixture
def pytest_run(tmp_path):
    """Run pytest as a user would, in a project with a test of its own."""
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    assert True\n")

    def call(*arguments):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    return call


FEW = ("--e3sparse-examples", 2)


def test_the_plugin_runs_the_suite_alone(pytest_run, tiny_checkpoint):
    code, printed = pytest_run(
        "--e3sparse-model", tiny_checkpoint, "--e3sparse-backend", "sevennet", *FEW, "-v"
    )
    assert code == 0, printed
    assert "test_mine" not in printed
    for check in CHECKS:
        assert f"test_symmetry[{check}]" in printed
    assert f"{len(CHECKS) - 3} passed, 3 skipped" in printed


@pytest.mark.parametrize(
    "distributed", [("-n", "2"), pytest.param((), marks=pytest.mark.nightly)], ids=["xdist", ""]
)
def test_the_plugin_runs_beside_tests_that_are_named(pytest_run, tiny_checkpoint, distributed):
    code, printed = pytest_run(
        "test_mine.py", "--e3sparse-model", tiny_checkpoint, *FEW, *distributed
    )
    assert code == 0, printed
    assert f"{len(CHECKS) - 3 + 1} passed, 3 skipped" in printed


def test_without_a_model_the_plugin_does_nothing(pytest_run):
    code, printed = pytest_run()
    assert code == 0
    assert "1 passed" in printed


def test_the_plugin_imports_nothing_heavy_without_a_model():
    code = "import e3sparse_pytest, sys; print('torch' in sys.modules, 'pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_the_plugin_fails_with_the_counterexample(pytest_run, tiny_checkpoint, tmp_path):
    (tmp_path / "conftest.py").write_text(
        "from e3sparse_sevennet.backend import SevenNetPotential as P\n"
        "honest = P.forward\n"
        "def forward(self, batch):\n"
        "    out = honest(self, batch)\n"
        "    return out._replace(energy=out.energy + 1.0)\n"
        "P.forward = forward\n"
    )
    code, printed = pytest_run(
        tmp_path / "test_mine.py", "--e3sparse-model", tiny_checkpoint, *FEW, "-k", "isolated"
    )
    assert code == 1
    assert "isolated atoms: failed" in printed
    assert "atoms = Atoms(['H']" in printed


def test_load_subject_has_both_precisions(tiny_checkpoint):
    both = load_subject(str(tiny_checkpoint))
    assert (both.dtype, both.single.dtype) == (torch.float64, torch.float32)
    alone = load_subject(str(tiny_checkpoint), dtype=torch.float32)
    assert alone.dtype == torch.float32
    assert alone.single is None
