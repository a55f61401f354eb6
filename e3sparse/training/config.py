"""The settings of a fine-tuning run, from flags and a YAML file."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from e3sparse.deltas import known_methods
from e3sparse.errors import ConfigError, nearest
from e3sparse.frames.reading import LabelKeys
from e3sparse.training.losses import Loss
from e3sparse.training.optimizers import FRESH_LR, OPTIMIZERS

WHOLE_MODEL = ("full", "scratch")
DEPENDENT = {
    "magnetic": ("spin_orbit", "spin_lr", "spin_settings"),
    "replay": ("replay_weight", "replay_structures", "replay_batch_size"),
}
"""Settings that mean nothing without another."""


class FinetuneConfig(BaseModel):
    """Everything that decides the outcome of a run; `run/config.yaml` holds it resolved.

    Attributes
    ----------
    model, backend, head
        Name or path of the base model; its framework, found out if None; its head or level of
        theory, where it has several.
    train, valid, test
        Files that ASE reads. Without `valid`, a share `valid_fraction` of train is held out.
    skip_faulty
        Whether frames that cannot be used, or are nothing like the rest, are left out of the run;
        else it stops and names them.
    energy_only
        Whether files without forces may be trained on.
    check_units
        Whether labels that agree with the base model in another unit only are refused.
    in_memory, examined_frames
        A database (`.db`, `.aselmdb`) of more frames than `in_memory` is left on disk and read
        when needed. What asks the base model, or measures errors, takes `examined_frames` of it,
        drawn by the seed.
    workers
        Processes that read frames and build graphs beside the training.
    device, devices
        `"cpu"`, `"cuda"` or `"auto"`, and how many of them; several share each step's work (DDP),
        each with `batch_size` frames.
    accelerate
        `"auto"`, `"none"` for the framework's own evaluation, or the name of a library that the
        backend can evaluate by, such as `"cueq"`.
    targets, method, method_settings
        As for `e3sparse.patch`; method also `"full"` (full fine-tuning) and `"scratch"`.
    magnetic, spin_orbit
        Whether the model gets spin-aware layers (`e3sparse.magnetism`) and learns moments, and
        whether the spins may feel the lattice. The layers are trained in full, at `spin_lr`.
    spin_settings
        Other settings of `e3sparse.magnetism.SpinSettings`.
    replay
        `"auto"` or a file of structures: penalise drift from the base model on random structures
        and ASE's molecules and solids, or on these, labelled by the base model itself
        (`e3sparse.training.replay`).
    replay_weight, replay_structures, replay_batch_size
        Weight of that loss beside the other, how many random structures there are, and how many
        of them each step sees.
    e0s
        `"fit"`: one energy shift per element. Of an element that `train` has an isolated atom of
        (one atom, not periodic; no forces needed), its label less the base model's energy; of the
        others by least squares on the training frames. `"keep"`: the base model's references.
        Isolated atoms are neither trained nor tested on, in whichever file they are: without
        neighbours there is no force to learn, and only those of `train` are references.
    refit_e0s
        Whether fitted references are fitted once more after training, to what is left on `train`
        between labels and the trained model; those of isolated atoms stay.
    epochs, max_steps
        Length of the training; `max_steps` counts if it is given.
    patience
        Validations without a better one after which to stop; None to go to the end.
    recover
        Whether a training whose losses or validations leave all bounds goes back to an earlier
        state and on at half the learning rate (`e3sparse.training.recovery`); else it ends only
        when the loss is no finite number.
    allow_worse
        Whether a model may be written whose loss on the validation frames is higher than the base
        model's; else that is an error.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    backend: str | None = None
    head: str | None = None
    device: str = "auto"
    devices: int = Field(1, ge=1)
    dtype: Literal["float32", "float64"] | None = None
    accelerate: str = "auto"

    train: Path
    valid: Path | None = None
    test: Path | None = None
    valid_fraction: float = Field(0.1, gt=0, lt=1)
    skip_faulty: bool = False
    energy_only: bool = False
    check_units: bool = True
    in_memory: int = Field(20_000, ge=0)
    examined_frames: int = Field(2000, ge=1)
    workers: int = Field(0, ge=0)
    keys: LabelKeys = LabelKeys()

    targets: str | list[str] = "linear"
    method: str = "budget"
    method_settings: dict[str, Any] = Field(default_factory=dict)
    e0s: Literal["keep", "fit"] = "fit"
    refit_e0s: bool = True

    magnetic: bool = False
    spin_orbit: bool = False
    spin_lr: float = Field(FRESH_LR, gt=0)
    spin_settings: dict[str, Any] = Field(default_factory=dict)

    replay: str | None = Field(None, min_length=1)
    replay_weight: float = Field(0.1, gt=0)
    replay_structures: int = Field(128, ge=1)
    replay_batch_size: int = Field(4, ge=1)

    epochs: int = Field(50, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    valid_batch_size: int = Field(32, ge=1)
    valid_every: int = Field(1, ge=1)
    lr: float | None = Field(None, gt=0)
    optimizer: str = "schedule_free"
    loss: Loss = Loss()
    patience: int | None = Field(None, ge=1)
    recover: bool = True
    allow_worse: bool = False
    seed: int = Field(0, ge=0)

    out: Path = Path("run")

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        known = [*known_methods(), *WHOLE_MODEL]
        if method not in known:
            raise ValueError(
                f"there is no method '{method}'.{nearest(method, known)} "
                f"Methods: {', '.join(known)}"
            )
        return method

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, optimizer: str) -> str:
        if optimizer not in OPTIMIZERS:
            raise ValueError(
                f"there is no optimizer '{optimizer}'.{nearest(optimizer, OPTIMIZERS)} "
                f"Optimizers: {', '.join(OPTIMIZERS)}"
            )
        return optimizer

    @model_validator(mode="after")
    def _has_something_to_replay(self) -> Self:
        if self.replay is not None and self.method == "scratch":
            raise ValueError("training from scratch has no base model that it could stay near")
        return self

    @model_validator(mode="after")
    def _is_evaluated_for_spins(self) -> Self:
        if self.magnetic and self.accelerate not in ("auto", "none"):
            raise ValueError(
                f"accelerate={self.accelerate} has no effect with magnetic: spin-aware layers read "
                "the features of the e3nn form"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_without_effect(self) -> Self:
        for switch, settings in DEPENDENT.items():
            for name in settings:
                default = type(self).model_fields[name].get_default(call_default_factory=True)
                if not getattr(self, switch) and getattr(self, name) != default:
                    raise ValueError(
                        f"{name} has no effect without {switch}: give it too, or neither"
                    )
        return self

    def files(self) -> dict[str, Path]:
        """Return the files that a run reads, by their flags."""
        named = {
            "--model": Path(self.model),
            "--train": self.train,
            "--valid": self.valid,
            "--test": self.test,
            "--replay": None if self.replay is None else Path(self.replay),
        }
        return {flag: path for flag, path in named.items() if path is not None and path.is_file()}

    @property
    def whole_model(self) -> bool:
        """Whether the model itself is trained, without a delta."""
        return self.method in WHOLE_MODEL

    @property
    def learning_rate(self) -> float:
        """The learning rate asked for, or the method's own."""
        if self.lr is not None:
            return self.lr
        return 3e-3 if self.whole_model else known_methods()[self.method].default_lr


def make_config(values: dict[str, Any]) -> FinetuneConfig:
    """Check settings.

    Raises
    ------
    ConfigError
        Naming the setting that is wrong.
    """
    try:
        return FinetuneConfig.model_validate(values)
    except ValidationError as error:
        problems = []
        for e in error.errors():
            name = ".".join(map(str, e["loc"]))
            hint = (
                nearest(name, FinetuneConfig.model_fields) if e["type"] == "extra_forbidden" else ""
            )
            said = e["msg"].removeprefix("Value error, ").rstrip(".")
            problems.append(f"{name + ': ' if name else ''}{said}.{hint}")
        raise ConfigError("Settings are wrong: " + " ".join(problems)) from None


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises
    ------
    ConfigError
        If it cannot be read or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, RecursionError):
        raise ConfigError(f"{path} is no YAML file of settings in UTF-8.") from None
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {said}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings: expected 'name: value' lines.")
    return values
