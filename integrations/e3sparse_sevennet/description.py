"""What a person who knows SevenNet asks of a model, from the config in its checkpoint."""

from typing import Any

import sevenn._keys as KEY


def describe(module: Any, config: dict[str, Any]) -> dict[str, str]:
    """Return the architecture of a SevenNet model, line by line.

    Parameters
    ----------
    config
        Of its checkpoint, in which SevenNet has put the options that older versions lacked.
    """
    connections = config[KEY.SELF_CONNECTION_TYPE]
    if not isinstance(connections, str):
        connections = ", ".join(dict.fromkeys(connections))
    if config.get(KEY.USE_BIAS_IN_LINEAR):
        connections += "; linear layers with biases"
    modalities = list(config.get(KEY.MODAL_MAP) or {}) if config.get(KEY.USE_MODALITY) else []
    gates: list[Any] = [
        layer for name, layer in module.named_children() if name.endswith("equivariant_gate")
    ]
    widest = max((str(layer.gate.irreps_out) for layer in gates), key=len)
    return {
        "family": f"SevenNet, file of version {config.get('version', '?')}",
        "layers": f"{config[KEY.NUM_CONVOLUTION]} convolutions, {widest}",
        "l_max": _degrees(config),
        "self-connections": connections,
        **({"level of theory": f"by modality: {', '.join(modalities)}"} if modalities else {}),
    }


def _degrees(config: dict[str, Any]) -> str:
    # -1 stands for lmax.
    lmax = config[KEY.LMAX]
    edge, node = (
        lmax if config.get(key, -1) < 0 else config[key] for key in (KEY.LMAX_EDGE, KEY.LMAX_NODE)
    )
    return f"{lmax}" if edge == node == lmax else f"{lmax} (edges {edge}, nodes {node})"
