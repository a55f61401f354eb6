"""What `targets` selects, and that nothing is skipped in silence."""

import re

import pytest
import torch
from e3nn import o3
from networks import SPECIES, network, patch
from torch import nn

import e3sparse
from e3sparse.adapter.targets import UNKNOWN, select
from e3sparse.errors import TargetError
from e3sparse.layers.kinds import KINDS, LayerKind
from e3sparse.layers.layouts import Species

LAYERS = {
    "embedding": "linear",
    "conv": "tp",
    "radial.layer0": "mlp",
    "radial.layer1": "mlp",
    "self_connection": "fctp",
    "mixed": "tp",
    "readout": "linear",
}


def of_kind(*kinds):
    return {path for path, kind in LAYERS.items() if kind in kinds}


def in_ensemble():
    return nn.ModuleDict({"first": network(), "second": network()})


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("linear", of_kind("linear")),
        ("fctp", of_kind("fctp")),
        ("tp", of_kind("tp")),
        ("mlp", of_kind("mlp")),
        ("all", set(LAYERS)),
        ("mixed", {"mixed"}),
        ("radial", {"radial.layer0", "radial.layer1"}),
        ("radial.*0", {"radial.layer0"}),
        ("*", set(LAYERS)),
        (r"radial\.layer\d", {"radial.layer0", "radial.layer1"}),
        (r"(?!radial).*", set(LAYERS) - of_kind("mlp")),
        (r"e.+ing|readout", {"embedding", "readout"}),
        (["linear", "radial.layer1"], of_kind("linear") | {"radial.layer1"}),
        (["linear", "embedding"], of_kind("linear")),
        (("mixed",), {"mixed"}),
        (lambda path, module: isinstance(module, o3.TensorProduct), of_kind("tp", "fctp")),
        (lambda path, module: path.endswith("1"), {"radial.layer1"}),
    ],
)
def test_what_is_selected(targets, expected):
    selection = select(network(), targets)
    assert set(selection.layers) == expected
    assert {path: layout.kind for path, layout in selection.layers.items()} == {
        path: LAYERS[path] for path in expected
    }
    assert {skip.path for skip in selection.skipped} == set(LAYERS) - expected
    assert {skip.reason for skip in selection.skipped} <= {"not among the targets"}


def test_a_parent_path_is_no_mere_prefix():
    model = nn.ModuleDict({"block": in_ensemble(), "block1": network()})
    layers = select(model, "block.first").layers
    assert set(layers) == {f"block.first.{path}" for path in LAYERS}
    assert all(path.startswith("block.") for path in select(model, "block").layers)


def test_every_layer_of_the_model_is_listed_in_the_summary():
    model = network()
    model.fixed = o3.ElementwiseTensorProduct("2x1o", "2x1o")
    text = str(patch(model, ["mixed", "embedding"]).summary())
    for path in LAYERS:
        assert path in text or LAYERS[path] in text
    assert "tp: it has no weights (fixed)" in text
    assert re.search(
        r"2 x mlp: not among the targets, .*% of the parameters \(radial.layer0, radial.l", text
    )


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ("lineer", "Did you mean 'linear'"),
        ("radial.layer2", "Did you mean 'radial.layer"),
        ("nothing_like_it", "targets='nothing_like_it' matches no layer"),
        ("(", r"targets='\(' matches no layer"),
        (["linear", "mixd"], r"targets='mixd' matches no layer.*Did you mean 'mixed'"),
        (lambda path, module: False, "accepted no layer"),
    ],
)
def test_targets_that_match_nothing(targets, says):
    holdings = r".*The model holds 1 fctp, 2 linear, 2 mlp, 2 tp \(try targets='(linear|mlp|tp)'\)"
    with pytest.raises(TargetError, match=says + holdings):
        select(network(), targets)


def test_a_kind_is_narrowed_to_layers_with_weights_of_their_own():
    assert set(select(network(), "tp").layers) == {"conv", "mixed"}
    assert set(select(network(), "tp:internal").layers) == {"mixed"}
    assert set(select(network(), "tp:external").layers) == {"conv"}
    assert set(select(network(), ["linear:internal", "tp:internal"]).layers) == {
        *of_kind("linear"),
        "mixed",
    }
    for nothing in ("linear:external", "tp:extern"):
        with pytest.raises(TargetError, match=f"targets='{nothing}' matches no layer"):
            select(network(), nothing)


@pytest.mark.parametrize("targets", ["species", ["species"], ("species", "embedding")])
def test_species_are_the_layers_with_an_axis_over_them(targets):
    assert set(select(network(), targets, SPECIES).layers) == set(SPECIES.axes)
    assert patch(network(), targets).untouched_species() == [*SPECIES.numbers]  # ΔW = 0 yet


@pytest.mark.parametrize(
    ("species", "says"),
    [
        (None, "not known which they are.*species=Species"),
        (Species((1, 6, 8)), "all elements share the weights. The model holds 1 fctp"),
    ],
)
def test_species_where_no_layer_has_an_axis_over_them(species, says):
    with pytest.raises(TargetError, match=says):
        select(network(), "species", species)


def test_species_whose_layers_cannot_be_patched():
    model = network()
    model.embedding.forward = model.embedding.forward
    with pytest.raises(TargetError, match="passed over \\(embedding: it has a forward of its own"):
        select(model, "species", Species((1, 6, 8), {"embedding": 0}))


@pytest.mark.parametrize("targets", [[], ()])
def test_an_empty_list_of_targets_matches_nothing(targets):
    with pytest.raises(TargetError, match="The model holds 1 fctp"):
        select(network(), targets)


def test_a_path_that_some_other_framework_calls_a_kind(monkeypatch):
    kind = LayerKind("embedding", ("framework.Embedding",), lambda module: None)
    monkeypatch.setitem(KINDS, "framework.Embedding", kind)
    assert set(select(network(), "embedding").layers) == {"embedding"}


def test_a_kind_goes_before_a_path_of_its_name():
    model = nn.ModuleDict({"linear": network(), "last": o3.Linear("2x0e", "2x0e")})
    assert set(select(model, "linear").layers) == {"linear.embedding", "linear.readout", "last"}


def test_a_kind_that_the_model_does_not_hold():
    with pytest.raises(TargetError, match="The model holds 1 linear") as refused:
        select(nn.ModuleDict({"only": o3.Linear("2x0e", "2x0e")}), "fctp")
    assert "Did you mean" not in str(refused.value)


def test_a_model_without_a_layer_of_a_known_kind():
    with pytest.raises(TargetError, match="holds no layer of a kind that e3sparse knows"):
        select(nn.Conv1d(2, 2, 1), "all")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: o3.Linear("2x0e", "2x0e", internal_weights=False), "come from outside"),
        (lambda: torch.jit.script(o3.Linear("2x0e", "2x0e")), "TorchScript"),
    ],
    ids=["external", "TorchScript"],
)
def test_a_model_whose_layers_are_all_passed_over_says_why(make, reason):
    with pytest.raises(TargetError, match=f"Layers passed over: .*{reason}"):
        select(nn.ModuleDict({"only": make()}), "linear")


def test_nothing_is_changed_when_targets_match_nothing():
    model = network()
    classes = [type(module) for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(TargetError):
        e3sparse.patch(model, "lineer")
    assert [type(module) for module in model.modules()] == classes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not e3sparse.adapters(model)


def with_tied_weights():
    model = nn.ModuleDict({"one": o3.Linear("2x0e", "2x0e"), "two": o3.Linear("2x0e", "2x0e")})
    model["two"].weight = model["one"].weight
    return model


def test_a_shared_weight_tensor_is_refused():
    with pytest.raises(TargetError, match="'one' and 'two' share one weight tensor"):
        select(with_tied_weights(), "linear")


@pytest.mark.parametrize("other", [lambda: o3.Linear("2x0e", "2x0e"), lambda: nn.Linear(2, 2)])
def test_a_merge_would_change_a_layer_that_shares_the_weight(other):
    model = nn.ModuleDict({"one": o3.Linear("2x0e", "2x0e"), "two": other()})
    model["two"].weight = model["one"].weight
    with pytest.raises(TargetError, match="'one' and 'two' share one weight tensor"):
        select(model, "one")


def test_layers_in_torchscript_share_nothing():
    scripted = {f"scripted{k}": torch.jit.script(o3.Linear("2x0e", "2x0e")) for k in range(3)}
    model = nn.ModuleDict({**scripted, "plain": o3.Linear("2x0e", "2x0e")})
    selection = select(model, "linear")
    assert list(selection.layers) == ["plain"]
    assert [skip.path for skip in selection.skipped] == list(scripted)


def test_one_module_under_two_names_is_patched_once():
    model = nn.ModuleDict({"one": o3.Linear("2x0e", "2x0e")})
    model["two"] = model["one"]
    assert list(select(model, "linear").layers) == ["one"]


class Holder(nn.Module):
    """A module that no kind knows, with weights of its own and layers below it."""

    def __init__(self):
        super().__init__()
        self.scales = nn.Parameter(torch.ones(5))
        self.table = nn.ParameterList([nn.Parameter(torch.ones(2, 3))])
        self.norm = nn.LayerNorm(4)
        self.linear = o3.Linear("2x0e", "3x0e")


@pytest.mark.parametrize("targets", ["linear", "everything", "held.linear"])
def test_every_parameter_is_in_a_target_or_passed_over(targets):
    model = network()
    model.held = Holder()
    found = select(model, targets)
    owned = sum(
        sum(p.numel() for p in model.get_submodule(path).parameters()) for path in found.layers
    )
    left = sum(skip.parameters for skip in found.skipped)
    assert owned + left == sum(p.numel() for p in model.parameters())
    unknown = {skip.path: skip.parameters for skip in found.skipped if skip.reason == UNKNOWN}
    assert unknown == {"held": 5, "held.table": 6, "held.norm": 8}
    text = str(patch(model, targets).summary())
    assert "1 x LayerNorm: of no kind that e3sparse knows, " in text
