"""SevenNet models as its options make them, and files that are read and written again."""

import numpy as np
import pytest
import sevenn
import sevenn._keys as KEY
import sevenn.util
import torch
from e3sparse_sevennet import SevenNetBackend
from potentials import evaluate, random_deltas, relative, tolerance
from sample_frames import structures
from sevenn.model_build import build_E3_equivariant_model
from support import load

import e3sparse
from e3sparse.errors import ConfigError

OPTIONS = {
    "bias": {KEY.USE_BIAS_IN_LINEAR: True},
    "linear": {KEY.SELF_CONNECTION_TYPE: ["linear"] * 2},
    "linear with bias": {
        KEY.SELF_CONNECTION_TYPE: ["linear"] * 2,
        KEY.USE_BIAS_IN_LINEAR: True,
        KEY.IS_PARITY: False,
    },
    "SO(3)": {KEY.IS_PARITY: False},
}


@pytest.fixture(params=OPTIONS)
def built(request, tiny_checkpoint, tmp_path):
    checkpoint = torch.load(tiny_checkpoint, weights_only=False)
    checkpoint["config"] |= OPTIONS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_E3_equivariant_model(dict(checkpoint["config"]))
    torch.save(checkpoint | {"model_state_dict": model.state_dict()}, tmp_path / "built.pth")
    return request.param, tmp_path / "built.pth"


@pytest.mark.parametrize("targets", ["linear", "mlp", "tp", "everything"])
def test_merged_is_patched_and_saved(built, targets, tmp_path):
    name, path = built
    potential = load(path, torch.float64)
    assert potential.parity == ("SO(3)" not in name and "linear with" not in name)
    before = evaluate(potential)
    adapter = random_deltas(potential, targets)
    patched = evaluate(potential)
    assert relative(patched, before) > 1e-4
    adapter.merge()
    assert relative(evaluate(potential), patched) < tolerance(potential)
    potential.save(tmp_path / "merged.pth")
    assert relative(evaluate(load(tmp_path / "merged.pth", torch.float64)), patched) < 1e-5
    adapter.restore()
    np.testing.assert_array_equal(evaluate(potential), before)


def test_species_axes_where_self_connections_are_linear(built):
    name, path = built
    axes = load(path).species.axes
    connections = [p for p in axes if p.endswith("fc_tensor_product")]
    assert len(connections) == (0 if name.startswith("linear") else 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["7net-0", None])
def test_saving_is_idempotent(name, dtype, tiny_checkpoint, tmp_path):
    potential = load(name or tiny_checkpoint, dtype)
    before = evaluate(potential)
    potential.save(tmp_path / "written.pth")
    np.testing.assert_array_equal(evaluate(potential), before)  # and nothing is left behind
    base = sevenn.util.load_checkpoint(name or str(tiny_checkpoint)).build_model().to(dtype)
    written = torch.load(tmp_path / "written.pth", weights_only=False)["model_state_dict"]
    for key, values in base.state_dict().items():
        assert torch.equal(values, written[key]), key
    again = load(tmp_path / "written.pth", dtype)
    np.testing.assert_array_equal(evaluate(again), before)


def test_names_are_those_of_sevenn(monkeypatch):
    backend = SevenNetBackend()
    assert set(backend.model_names()) == set(sevenn.util.get_available_pretrained_models())
    of_today = sevenn.util.pretrained_name_to_path
    monkeypatch.setattr(
        "sevenn.util.pretrained_name_to_path",
        lambda name: of_today("7net-0" if name == "7net-nano" else name),
    )
    for name in ("7net-nano", "SevenNet-0"):
        assert backend.knows(name)
        assert load(name).name == name
    with pytest.raises(ConfigError, match=r"nor a model that sevenn .* Did you mean '7net-mf-0'"):
        load("7net-mf0")


def test_the_other_level_of_theory_changes_with_what_both_share():
    trained, other = (load("7net-mf-0", head=head) for head in ("PBE", "R2SCAN"))
    before = evaluate(trained), evaluate(other)
    assert relative(*before) > 1e-3
    random_deltas(trained, "reduce_input_to_hidden")
    e3sparse.merge(trained.module)
    other.module.load_state_dict(trained.module.state_dict())
    after = evaluate(trained), evaluate(other)
    assert all(relative(a, b) > 1e-3 for a, b in zip(after, before, strict=True))


def test_training_one_level_of_theory_and_what_the_other_says(tmp_path):
    """Rows and energies of the other's own stay; what both share moves, and it says so."""
    trained = load("7net-mf-0", head="PBE")
    others_before = evaluate(load("7net-mf-0", head="R2SCAN"))
    path = "0_self_interaction_1.linear"
    adapter = trained.patch(path, "dense")
    batch = trained.collate([trained.graph(atoms) for atoms in structures()])
    trained.module.train()
    trained.forward(batch).energy.square().sum().backward(inputs=adapter.parameters())
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.sub_(0.1 * parameter.grad / parameter.grad.abs().max())
    (of_modality,) = (
        rows
        for block, rows in adapter.layouts[path].views(adapter.values()[path])
        if block.irreps_in == "2x0e"
    )
    assert not of_modality[0].any()  # R2SCAN's
    assert of_modality[1].all()
    trained.shift_energies({8: 1.0})
    adapter.merge()
    trained.save(tmp_path / "tuned.pth")
    pbe, r2scan = (load(tmp_path / "tuned.pth", head=head) for head in ("PBE", "R2SCAN"))
    np.testing.assert_array_equal(evaluate(pbe), evaluate(trained))
    base = load("7net-mf-0", head="R2SCAN").module._modules["rescale_atomic_energy"].shift
    shift = r2scan.module._modules["rescale_atomic_energy"].shift
    assert torch.equal(shift[0], base[0])
    assert not torch.equal(shift[1], base[1])
    assert relative(evaluate(r2scan), others_before) > 1e-3
