"""NequIP's options for the whole process, kept from spreading into it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from nequip.utils import global_state
from nequip.utils.dtype import torch_default_dtype


@contextmanager
def nequip_state() -> Iterator[None]:
    """Set NequIP's global options for a while: its default dtype and seed are everybody's."""
    was = global_state._GLOBAL_STATE_INITIALIZED
    silenced = logging.root.manager.disable
    logging.disable(logging.INFO)  # each of NequIP's loggers has a level of its own
    with torch_default_dtype(torch.get_default_dtype()), torch.random.fork_rng(devices=[]):
        global_state.set_global_state()
        try:
            yield
        finally:
            logging.disable(silenced)
            # Else NequIP's own calculator, made later, would find float32 and take it.
            global_state._GLOBAL_STATE_INITIALIZED = was
