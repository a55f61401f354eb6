"""The settings of a fine-tuning run, from flags and a YAML file."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict

from e3sparse.errors import ConfigError, nearest, wrong_values
from e3sparse.frames.label_keys import LabelKeys
from e3sparse.training.loss_weights import LossWeights

WHOLE_MODEL = ("full", "scratch")
LARGEST_WITH_REPLAY = 0.07
"""Where the growing learning rate of a budget stops if there is replay; benchmarks/README.md."""
FRESH_LR = 1e-2
"""Learning rate of layers that start from random weights."""

DEPENDENT = {
    "magnetic": ("spin_orbit", "spin_lr", "spin_settings"),
    "replay": (
        "replay_weight",
        "replay_energy_weight",
        "replay_structures",
        "replay_batch_size",
    ),
    "fisher": ("fisher_weight", "fisher_price", "fisher_structures"),
}
"""Settings that mean nothing without another."""

_RUN, _DATA, _METHOD = "Model and run", "Data", "What is trained"
_TRAINING, _MAGNETISM = "Training", "Magnetism"


def _setting(
    default: Any, description: str, panel: str, *, flag: str | None = None, **checks: Any
) -> Any:
    """Return a field that `e3sparse finetune` has a flag for, under that heading of its help.

    `flag` is the name of the flag where it is not that of the field; in it, `{}` stands for each
    field of a nested model.
    """
    said: JsonDict = {"panel": panel, "flag": flag}
    return Field(default, description=description, json_schema_extra=said, **checks)


class FinetuneConfig(BaseModel):
    """Everything that decides the outcome of a run; `run/config.yaml` holds it resolved.

    `e3sparse finetune` makes its flags, their defaults and their help of these fields, so this
    module imports nothing slow. Attributes are described where they are declared.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = _setting(..., "Base model: a name or a file.", _RUN)
    backend: str | None = _setting(None, "Framework of the model; found out if left out.", _RUN)
    head: str | None = _setting(None, "Head or level of theory, for models with several.", _RUN)
    device: str = _setting("auto", "cpu, cuda, cuda:1 or auto.", _RUN)
    devices: int = _setting(
        1,
        "Number of devices that share each step (DDP), each with --batch-size frames.",
        _RUN,
        ge=1,
    )
    strategy: str = _setting(
        "auto", "How devices share a step: auto, or one of Lightning's ddp_spawn strategies.", _RUN
    )
    dtype: Literal["float32", "float64"] | None = _setting(
        None, "Precision of the training; that of the file if left out.", _RUN
    )
    matmul_precision: Literal["highest", "high", "medium"] = _setting(
        "highest",
        "Precision of float32 matrix products in the training: high is TensorFloat-32 on a GPU.",
        _RUN,
    )
    accelerate: str = _setting(
        "auto",
        "How the model is evaluated: auto; none, as the framework does; cueq (cuEquivariance); "
        "for SevenNet also oeq (OpenEquivariance).",
        _RUN,
    )
    out: Path = _setting(Path("run"), "Run folder to write.", _RUN)
    logger: str | list[str] = _setting(
        "csv", "tensorboard, wandb or mlflow, beside csv; may be repeated.", _RUN
    )
    trainer: dict[str, Any] = Field(default_factory=dict)

    train: Path = _setting(..., "Training frames, in any format that ASE reads.", _DATA)
    valid: Path | None = _setting(None, "Validation frames; a part of --train if left out.", _DATA)
    test: Path | None = _setting(None, "Test frames.", _DATA)
    valid_fraction: float = _setting(
        0.1, "Share of --train that is held out where there is no --valid.", _DATA, gt=0, lt=1
    )
    skip_faulty: bool = _setting(
        False, "Leave out frames that cannot be used or that are nothing like the rest.", _DATA
    )
    energy_only: bool = _setting(False, "Train on files without forces too.", _DATA)
    check_units: bool = _setting(
        True, "Refuse labels that agree with the base model in another unit only.", _DATA
    )
    in_memory: int = _setting(
        20_000,
        "Databases (.db, .aselmdb) and uncompressed XYZ of more frames than this stay on disk.",
        _DATA,
        ge=0,
    )
    examined_frames: int = _setting(
        2000, "Number of frames of a set on disk that are checked and evaluated.", _DATA, ge=1
    )
    workers: int = _setting(
        0, "Processes that read frames and build graphs, for sets on disk.", _DATA, ge=0
    )
    keys: LabelKeys = _setting(LabelKeys(), "Names of labels.", _DATA, flag="{}-key")
    e0s: Literal["keep", "fit"] = _setting(
        "fit",
        "Energy references: fit a shift per element, from isolated atoms in --train and by least "
        "squares for elements without one; or keep those of the base model.",
        _DATA,
    )
    refit_e0s: bool = _setting(
        True, "Fit the references that were fitted once more after training.", _DATA
    )

    targets: str | list[str] = _setting(
        "linear",
        "Layers to train: linear, fctp, tp, mlp, species, all, everything, a name of the "
        "framework, or a glob or regular expression on module paths; may be repeated.",
        _METHOD,
    )
    method: str = _setting(
        "budget",
        "budget, soft_threshold, low_rank, dense, fixed_mask; full or scratch for the whole model.",
        _METHOD,
    )
    method_settings: dict[str, Any] = Field(default_factory=dict)

    magnetic: bool = _setting(
        False, "Put spin-aware layers on the model, and learn moments too.", _MAGNETISM
    )
    spin_orbit: bool = _setting(
        False,
        "Let the spins feel the lattice; without it a rotation of all spins changes nothing.",
        _MAGNETISM,
    )
    spin_lr: float = _setting(FRESH_LR, "Learning rate of the spin-aware layers.", _MAGNETISM, gt=0)
    spin_settings: dict[str, Any] = Field(default_factory=dict)

    replay: str | None = _setting(
        None,
        "auto, or a file of structures: penalise drift from the base model on small structures of "
        "all its elements or on these, labelled by itself. Give a lower --lr with it.",
        _TRAINING,
        min_length=1,
    )
    replay_weight: float = _setting(
        0.1, "Weight of the replay loss beside the loss on labels.", _TRAINING, gt=0
    )
    replay_energy_weight: float = _setting(
        1.0,
        "How much energies count in the replay loss, in units of --energy-weight.",
        _TRAINING,
        ge=0,
    )
    replay_structures: int = _setting(
        128, "Number of random structures for --replay auto.", _TRAINING, ge=1
    )
    replay_batch_size: int = _setting(4, "Replayed structures in each step.", _TRAINING, ge=1)

    fisher: str | None = _setting(
        None,
        "auto, or a file of {parameter name: tensor}: hold back the weights that the base model "
        "needs, by its Fisher information on small structures of all its elements or that of the "
        "file.",
        _TRAINING,
        min_length=1,
    )
    fisher_weight: float = _setting(
        0.1, "Weight of the penalty ½ Σ F ΔW² beside the loss on labels.", _TRAINING, ge=0
    )
    fisher_price: float = _setting(
        0.0,
        "How much the Fisher information counts where a budget chooses its entries: by |v| divided "
        "by the root of it to this power.",
        _TRAINING,
        ge=0,
        le=4,
    )
    fisher_structures: int = _setting(
        128, "Number of random structures for --fisher auto.", _TRAINING, ge=1
    )

    epochs: int = _setting(50, "Passes over the training set.", _TRAINING, ge=1)
    max_steps: int | None = _setting(None, "Length in steps, instead of epochs.", _TRAINING, ge=1)
    batch_size: int = _setting(8, "Frames in each step.", _TRAINING, ge=1)
    valid_batch_size: int = _setting(32, "Frames evaluated at once elsewhere.", _TRAINING, ge=1)
    valid_every: int = _setting(1, "Epochs between validations.", _TRAINING, ge=1)
    lr: float | None = _setting(
        None,
        "Learning rate. If left out: 0.01 for a delta, 0.003 for the whole model.",
        _TRAINING,
        gt=0,
    )
    optimizer: str = _setting(
        "schedule_free", "schedule_free, adamw (cosine decay) or sgd.", _TRAINING
    )
    warmup: float | None = _setting(
        None,
        "Share of the steps in which the learning rate rises from 0. If left out: 0.05 for "
        "schedule_free, 0 for others.",
        _TRAINING,
        ge=0,
        lt=1,
    )
    ema: float | None = _setting(
        None,
        "Evaluate and write a moving average of the weights, which keeps this share of itself at "
        "each step (MACE: 0.99). Not for schedule_free, which averages already.",
        _TRAINING,
        gt=0,
        lt=1,
    )
    clip_grad: float = _setting(
        10.0,
        "Largest norm of a gradient, to which larger ones are scaled; 0 for no bound.",
        _TRAINING,
        ge=0,
    )
    accumulate: int = _setting(
        1, "Batches whose mean gradient makes a step; for batches that do not fit.", _TRAINING, ge=1
    )
    loss: LossWeights = _setting(LossWeights(), "The loss.", _TRAINING, flag="{}-weight")
    patience: int | None = _setting(
        None, "Validations without progress after which to stop.", _TRAINING, ge=1
    )
    recover: bool = _setting(
        True,
        "Return to an earlier state, and halve the learning rate, when the losses diverge.",
        _TRAINING,
    )
    allow_worse: bool = _setting(
        False,
        "Write the model even if its validation loss is higher than that of the base model.",
        _TRAINING,
    )
    seed: int = _setting(0, "Seed of all random numbers.", _TRAINING, ge=0)

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        from e3sparse.deltas import known_methods

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
        from e3sparse.training.optimizers import OPTIMIZERS

        if optimizer not in OPTIMIZERS:
            raise ValueError(
                f"there is no optimizer '{optimizer}'.{nearest(optimizer, OPTIMIZERS)} "
                f"Optimizers: {', '.join(OPTIMIZERS)}"
            )
        return optimizer

    @model_validator(mode="after")
    def _is_averaged_once(self) -> Self:
        if self.ema is not None and self.optimizer == "schedule_free":
            raise ValueError(
                "ema: schedule_free evaluates and writes an average of its weights already. Leave "
                "ema out, or take optimizer adamw or sgd with it"
            )
        return self

    @model_validator(mode="after")
    def _lightning_takes_it(self) -> Self:
        chosen = {"trainer", "logger", "strategy"} & self.model_fields_set
        if chosen:  # Lightning takes a second to import
            from e3sparse.training.trainer import check_trainer

            check_trainer(self)
        return self

    @model_validator(mode="after")
    def _has_a_delta(self) -> Self:
        if self.whole_model and self.method_settings:
            raise ValueError(
                f"method {self.method} trains the whole model, without a delta, and takes no "
                f"settings (given: {', '.join(self.method_settings)})"
            )
        if self.fisher is not None and self.whole_model:
            raise ValueError(
                f"fisher holds back the entries of a delta, and method {self.method} trains none"
            )
        if self.fisher is not None and self.magnetic:
            raise ValueError("fisher cannot be had together with magnetic: no spins are drawn")
        if self.fisher_price > 0 and self.method != "budget":
            raise ValueError(
                f"fisher_price counts where a budget chooses its entries, and method {self.method} "
                "chooses none: leave it out, or take method budget"
            )
        return self

    @model_validator(mode="after")
    def _has_settings_of_its_method(self) -> Self:
        if not self.whole_model:
            from e3sparse.deltas import make_method

            make_method(self.method, **self.method_settings)
        return self

    @model_validator(mode="after")
    def _has_something_to_replay(self) -> Self:
        if self.replay is not None and self.method == "scratch":
            raise ValueError("training from scratch has no base model that it could stay near")
        return self

    @model_validator(mode="after")
    def _grows_less_with_replay(self) -> Self:
        if self.replay is not None and self.method == "budget":
            self.method_settings.setdefault("largest_lr", LARGEST_WITH_REPLAY)
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
            "--fisher": None if self.fisher is None else Path(self.fisher),
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
        from e3sparse.deltas import known_methods

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
        wrong = wrong_values(error, FinetuneConfig.model_fields)
        raise ConfigError(f"Settings are wrong: {'; '.join(wrong)}.") from None


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
