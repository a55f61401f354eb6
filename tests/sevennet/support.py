"""How the SevenNet tests load a model."""


def load(model, dtype=None, head=None):
    """Load a model on the CPU."""
    from e3sparse_sevennet import SevenNetBackend

    return SevenNetBackend().load(str(model), device="cpu", dtype=dtype, head=head)
