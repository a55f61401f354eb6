"""Spin-aware layers on the base model of a run."""

from pydantic import ValidationError

from e3sparse.errors import ConfigError, DataError, wrong_values
from e3sparse.frames.reading import Frame, average_neighbours
from e3sparse.potentials.backends import Potential
from e3sparse.training.config import FinetuneConfig


def with_spin_layers(config: FinetuneConfig, potential: Potential, train: list[Frame]) -> Potential:
    """Return the base model with spin-aware layers.

    Raises
    ------
    ConfigError, DataError
        If their settings are wrong, or labels that the loss weighs are missing.
    """
    # Its layers are e3nn's, which a run without spins has no need to import.
    from e3sparse.magnetism import add_spins

    settings = {
        "spin_orbit": config.spin_orbit,
        "average_neighbours": average_neighbours(train, potential.cutoff),
    }
    if config.loss.magnetic_forces > 0 and any(f.magnetic_forces is None for f in train):
        raise DataError(
            f"The loss has a weight for magnetic forces, and not every frame of {config.train} has "
            f"a label '{config.keys.magnetic_forces}'. Set the weight to 0, or name "
            "the right one as keys.magnetic_forces in a --config."
        )
    try:
        magnetic = add_spins(potential, seed=config.seed, **settings | config.spin_settings)
        magnetic.magnetic_forces = config.loss.magnetic_forces > 0
        return magnetic
    except ValidationError as error:
        wrong = "; ".join(wrong_values(error))
        raise ConfigError(f"Settings are wrong: spin_settings: {wrong}.") from None
