"""What a person who knows NequIP asks of a model, read from its modules and its file."""

from collections import Counter
from typing import Any

from e3nn import o3
from nequip.model.saved_models.load_utils import _get_model_file_path
from nequip.model.saved_models.package import _get_package_metadata
from torch.package.package_importer import PackageImporter

from e3sparse.layers.kinds import qualified_name
from e3sparse_nequip.package import SUFFIX

_CONVOLUTION = "nequip.nn.convnetlayer.ConvNetLayer"
_ALLEGRO = "allegro.nn._allegro.Allegro_Module"
_SPHERE = "e3nn.o3._spherical_harmonics.SphericalHarmonics"
_ZBL = "nequip.nn.pair_potential.ZBL"


def describe(module: Any, source: str) -> dict[str, str]:
    """Return the architecture of a NequIP or Allegro model, line by line.

    Parameters
    ----------
    module
        A `nequip.nn.GraphModel`; its classes may be those of a package.
    source
        What it was loaded from.
    """
    by_class: dict[str, list[Any]] = {}
    for layer in module.modules():
        by_class.setdefault(qualified_name(type(layer)), []).append(layer)
    convolutions, allegros = by_class.get(_CONVOLUTION, []), by_class.get(_ALLEGRO, [])
    family = "NequIP" if convolutions else "Allegro" if allegros else "an extension of NequIP"
    told = {"family": family, "file": _file(source)}
    if convolutions:
        widths = Counter(str(layer.equivariant_nonlin.irreps_out) for layer in convolutions)
        shown = ", ".join(f"{number} x {irreps}" for irreps, number in widths.items())
        told["layers"] = f"{len(convolutions)} convolutions: {shown}"
    for layer in allegros:
        told["layers"] = (
            f"{layer.num_layers} of {layer.num_scalar_features} scalar and "
            f"{layer.num_tensor_features} tensor features"
        )
    for sphere in by_class.get(_SPHERE, [])[:1]:
        told["l_max"] = str(o3.Irreps(str(sphere.irreps_out)).lmax)
    if _ZBL in by_class:
        told["short range"] = "ZBL"
    return told


def _file(source: str) -> str:
    with _get_model_file_path(source) as file:
        if not str(file).endswith(SUFFIX):
            return "checkpoint"
        metadata = _get_package_metadata(PackageImporter(str(file)))
    made_by = metadata.get("versions", {}).get("nequip", "?")
    modes = ", ".join(metadata.get("available_models", ()))
    layout = metadata.get("package_version_id", 0)
    return f"package of nequip {made_by}, layout {layout}, for {modes or 'eager'}"
