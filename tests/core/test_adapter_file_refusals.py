"""A folder that is wrong or belongs elsewhere is refused with a sentence, and changes nothing."""

import pytest
import torch
from e3nn import o3
from folders import assert_refused, edit_config, edit_tensors, load
from networks import bits, network, random_adapter, snapshot

import e3sparse
from e3sparse.adapter.config import CONFIG_NAME, TENSORS_NAME, read_config
from e3sparse.adapter.file import read_values
from e3sparse.errors import AdapterFileError

LAYER = "self_connection"


def test_the_control_is_loaded(folder):
    loaded = load(network(), folder)
    assert loaded.sparsity().updated > 0
    edit_config(folder, lambda config: None)
    edit_tensors(folder, lambda tensors: None)
    assert load(network(), folder).sparsity() == loaded.sparsity()


def with_other_weights(model):
    with torch.no_grad():
        model.readout.bias[0] += 1e-3


def with_another_layout(model):
    model.embedding = o3.Linear("3x0e", "2x0e+2x0e").double()


def without_a_layer(model):
    del model.mixed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_other_weights, "the weights of this model are not those .*fingerprint"),
        (with_another_layout, "Layer 'embedding' is laid out differently: .* another model"),
        (without_a_layer, "changes layer 'mixed', which this model does not have"),
    ],
)
def test_another_model(folder, change, says):
    model = network()
    change(model)
    assert_refused(folder, says, model)


def set_entry(part, index, value):
    def change(tensors):
        tensors[f"{LAYER}.{part}"][index] = value

    return change


def set_tensor(name, make):
    def change(tensors):
        tensors[name] = make(tensors.get(name))

    return change


VALUES, INDICES, DENSE = f"{LAYER}.values", f"{LAYER}.indices", "embedding.values"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_entry("indices", 0, 10**6), "index out of range .* to 1000000"),
        (set_entry("indices", 0, -1), "index out of range .from -1"),
        (set_tensor(INDICES, torch.zeros_like), "hold duplicates"),
        (set_tensor(INDICES, lambda t: t[1:].clone()), "indices of layer .* do not go with"),
        (set_tensor(INDICES, lambda t: t.double()), "indices of layer .* do not go with"),
        (set_tensor(INDICES, lambda t: t[None].clone()), "indices of layer .* do not go with"),
        (set_entry("values", 0, float("nan")), "not all finite"),
        (set_entry("values", 0, float("inf")), "not all finite"),
        (set_tensor(VALUES, lambda t: t.to(torch.int64)), "not a list of real numbers"),
        (set_tensor(VALUES, lambda t: t.to(torch.complex64)), f"{VALUES}. is of type C64"),
        (set_tensor(VALUES, lambda t: t[None].clone()), "not a list of real numbers"),
        (set_tensor(VALUES, lambda t: t.to(torch.float8_e4m3fn)), f"{VALUES}. is of type F8"),
        (set_tensor(DENSE, lambda t: t[1:].clone()), "has 12 weights, .* wrong shape"),
        (lambda tensors: tensors.pop(VALUES), f"lacks the values of layer '{LAYER}'"),
        (lambda tensors: tensors.pop(INDICES), "wrong shape"),
        (set_tensor("other.values", lambda t: torch.ones(2)), "holds 'other.values', which is of"),
    ],
)
def test_tensors_that_are_wrong(folder, change, says):
    edit_tensors(folder, change)
    assert_refused(folder, says)
    if "other" not in says:
        with pytest.raises(AdapterFileError, match=says):
            read_values(folder)


def test_values_that_the_dtype_of_the_model_cannot_hold(folder):
    model = network(torch.float32)
    edit_tensors(folder, set_entry("values", 0, 1e300))
    assert_refused(folder, "not all finite|too large|float32", model)


def set_field(name, value):
    def change(config):
        config[name] = value(config[name]) if callable(value) else value

    return change


def flipped(probe):
    return [*probe[:-1], -probe[-1]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_field("format_version", 4), "has format version 4, and this .*: upgrade e3sparse"),
        (set_field("format_version", "2"), "format.version"),
        (set_field("format_version", 2.0), "format.version"),
        (set_field("format_version", None), "is not an adapter config: format_version"),
        (lambda config: config.pop("method"), "is not an adapter config: method is missing"),
        (set_field("species", "H"), "is not an adapter config: species"),
        (lambda config: config.update(more=1), "is not an adapter config: 'more' is unknown"),
        (set_field("method", "budgt"), "method 'budgt'"),
        (set_field("settings", {"budget": 1}), "no setting 'budget'"),
        (set_field("settings", {"method": "dense"}), "'method'"),
        (set_field("settings", {"target_sparsity": 2}), "target_sparsity"),
        (set_field("base_fingerprint", "0" * 64), "weights of this model are not those"),
        (set_field("clebsch_gordan", flipped), "Clebsch-Gordan .* differ"),
        (set_field("clebsch_gordan", lambda probe: probe[:-1]), "Clebsch-Gordan"),
        (set_field("clebsch_gordan", lambda p: [float("nan")] * len(p)), "Clebsch-Gordan|finite"),
        (set_field("energy_references", {"1": float("nan")}), "energy_references|finite"),
        (lambda config: config["layers"][LAYER].update(kind="tp"), "its kind is fctp here and tp"),
        (lambda config: config["layers"][LAYER].update(shape=[3, 28]), "its shape is .84,. here"),
        (lambda config: config["layers"][LAYER]["blocks"].pop(), "has 2 blocks here and 1 in"),
        (lambda config: config["layers"].pop(LAYER), f"holds '{LAYER}.*', which is of no layer"),
    ],
)
def test_configs_that_are_wrong(folder, change, says):
    edit_config(folder, change)
    assert_refused(folder, says)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"not JSON",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format_version": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut off", "text", "no UTF-8", "deep", "long number"],
)
def test_a_config_that_is_no_json(folder, text):
    (folder / CONFIG_NAME).write_bytes(text)
    assert_refused(folder, "is not valid JSON")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"adapter"'])
def test_a_config_that_is_other_json(folder, text):
    (folder / CONFIG_NAME).write_text(text)
    assert_refused(folder, "is not an adapter config: it has to be a mapping of names")


@pytest.mark.parametrize(
    "shape", [[-84], [-12, -7], [10**18], []], ids=["negative", "two negative", "giant", "scalar"]
)
def test_a_shape_that_no_layer_has_is_refused_without_a_model(folder, shape):
    edit_config(folder, lambda config: config["layers"][LAYER].update(shape=shape))
    with pytest.raises(AdapterFileError):
        read_values(folder)


def test_files_that_are_not_there(folder, tmp_path):
    (folder / TENSORS_NAME).unlink()
    assert_refused(folder, f"has no {TENSORS_NAME}")
    (folder / CONFIG_NAME).unlink()
    assert_refused(folder, f"is not an adapter folder: it has no {CONFIG_NAME}")
    assert_refused(tmp_path / "nowhere", "is not an adapter folder")
    (tmp_path / "file").write_text("")
    assert_refused(tmp_path / "file", "cannot be read")


def test_a_refusal_leaves_another_adapter_alone(folder):
    model = network()
    other = random_adapter(model, "mixed", name="other")
    before, values = snapshot(model), {p: bits(v) for p, v in other.values().items()}
    edit_tensors(folder, set_entry("values", 0, float("nan")))
    with pytest.raises(AdapterFileError):
        load(model, folder)
    assert snapshot(model) == before
    assert {p: bits(v) for p, v in other.values().items()} == values


def test_each_version_of_the_file_names_the_reader(folder):
    edit_config(folder, set_field("format_version", 7))
    with pytest.raises(AdapterFileError, match=f"e3sparse .{e3sparse.__version__}. reads up to 3"):
        read_config(folder)
