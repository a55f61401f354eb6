"""Which device is meant, and whether it is there."""

import torch

from e3sparse.errors import ConfigError, nearest


def checked_device(name: str) -> str:
    """Return a device by the name that a user gave it.

    Parameters
    ----------
    name
        `"cpu"`, `"cuda"`, `"cuda:1"`, …, or `"auto"` for a CUDA device where there is one.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    known = ("auto", "cpu", "cuda", "mps", "xpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(
            f"There is no device '{name}'.{nearest(name, known)} Give cpu, cuda, cuda:1 or auto."
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            there = f"there are {count}, counted from 0" if count else "torch finds none here"
            raise ConfigError(f"--device {name}: {there}. Give another, or cpu, or auto.")
    return name
