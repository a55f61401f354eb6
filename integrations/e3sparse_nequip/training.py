"""NequIP's training modules, for a sparse delta on the model.

A mixin over NequIP's own modules: `_build_model` patches what the config names, be it built,
packaged or from a checkpoint, and `evaluation_model`, from which NequIP makes packages and compiled
models, is merged.
"""

from typing import Any

import torch
from ase.data import atomic_numbers
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from nequip.train import (
    EMALightningModule,
    NequIPLightningModule,
    ScheduleFreeLightningModule,
)
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from torch import nn

from e3sparse.adapter.handle import Adapter
from e3sparse.adapter.patching import adapters
from e3sparse.deltas import ParamGroup, make_method
from e3sparse.errors import ConfigError, nearest
from e3sparse.layers.faster_products import Acceleration
from e3sparse.layers.kinds import qualified_name
from e3sparse_nequip.backend import NequIPPotential

SETTLED = "settled/"
"""Prefix of a monitored metric that counts only once the delta has its final sparsity."""

_SCATTER = "nequip.nn._tp_scatter_base.TensorProductScatter"
_FACTORY = "e3sparse_nequip.SparseParamGroups"
_OF_THE_METHOD = {"weight_decay": "weight_decay", "betas": "beta2"}
"""Options of an optimizer that a method sets in its groups, and its setting for each."""


class SparseSettings(BaseModel):
    """`sparse:` in the config of a training module.

    Attributes
    ----------
    targets, method, seed
        As for `e3sparse.patch`. Everything else is a setting of the method, where null means that
        it is left out.
    elements
        Chemical symbols of the training data: what the model holds per type (its embeddings) stays
        at the base model's for every other element.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    targets: str | list[str] = "linear"
    method: str = "budget"
    seed: int = 0
    elements: list[str] | None = None

    @field_validator("elements")
    @classmethod
    def _known_elements(cls, elements: list[str] | None) -> list[str] | None:
        for symbol in elements or ():
            if symbol not in atomic_numbers:
                raise ValueError(
                    f"'{symbol}' is no chemical symbol.{nearest(symbol, atomic_numbers)}"
                )
        return elements

    @property
    def method_settings(self) -> dict[str, Any]:
        """What the config sets of the method."""
        return {k: v for k, v in (self.model_extra or {}).items() if v is not None}


class SparseMixin(NequIPLightningModule):
    """Trains a sparse delta on a frozen model.

    Parameters
    ----------
    sparse
        See `SparseSettings`.
    """

    optimizer_config: dict[str, Any]

    def __init__(self, sparse: dict[str, Any] | None = None, **kwargs: Any) -> None:
        try:
            self._sparse = SparseSettings.model_validate(sparse or {})
        except ValidationError as error:
            raise ConfigError(f"The 'sparse' settings are wrong: {error}") from None
        make_method(self._sparse.method, **self._sparse.method_settings)
        super().__init__(**kwargs)
        self._acceleration = Acceleration(self.model)

    def _build_model(self, model_config: dict[str, Any]) -> nn.Module:
        built: nn.Module = super()._build_model(model_config)
        parts = list(built.values()) if isinstance(built, nn.ModuleDict) else [built]
        for part in parts:
            potential = NequIPPotential("the model", part)
            adapter = potential.patch(
                self._sparse.targets,
                self._sparse.method,
                seed=self._sparse.seed,
                **self._sparse.method_settings,
            )
            if self._sparse.elements is not None:
                adapter.freeze_absent_species(atomic_numbers[s] for s in self._sparse.elements)
            for path, layout in adapter.layouts.items():
                scatter = type(part.get_submodule(path.rpartition(".")[0]))
                if layout.external and qualified_name(scatter) != _SCATTER:
                    raise ConfigError(
                        f"{scatter.__name__} does not see a delta on '{path}': leave 'tp' out of "
                        "the targets, or the modifier that accelerates it out of the model."
                    )
            if adapter.method.judged:
                raise ConfigError(
                    "nequip-train cannot stop pruning by itself: give sparse.target_sparsity a "
                    "number and leave tolerance out, or use `e3sparse finetune`."
                )
            if adapter.method.calibrated:
                raise ConfigError(
                    "A mask that is calibrated on the data cannot be made by nequip-train: use "
                    "`e3sparse finetune`."
                )
        return built

    def adapters(self) -> dict[str, Adapter]:
        """Return the adapter of each model, by NequIP's name for the model."""
        return {
            name: adapter
            for name, part in self.model.items()
            for adapter in adapters(part).values()
        }

    def configure_optimizers(self) -> Any:
        """Let NequIP make its optimizer over the groups that the method wants."""
        config = self.optimizer_config
        if "param_groups" not in config:
            for option, setting in _OF_THE_METHOD.items():
                if option in config and any(option in group for group in self._groups()):
                    raise ConfigError(
                        f"The method sets the {option} of a delta: write sparse.{setting}, not "
                        f"optimizer.{option}."
                    )
            if "lr" not in config:
                raise ConfigError("optimizer needs 'lr', the learning rate of the delta.")
            groups = {"_target_": _FACTORY, "lr": config["lr"]}
            self.optimizer_config = {**config, "param_groups": groups}
        try:
            return super().configure_optimizers()
        finally:
            self.optimizer_config = config

    def _groups(self) -> list[ParamGroup]:
        return [group for a in self.adapters().values() for group in a.param_groups()]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Take NequIP's step, with e3nn's layers as they are differentiated faster."""
        with self._acceleration():
            return super().training_step(*args, **kwargs)

    # The schedule -------------------------------------------------------------------------------

    def _steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError(
                "The method follows a schedule over the training, which has no end: set "
                "max_epochs or max_steps of the trainer."
            )
        return int(steps)

    @property
    def _scheduled(self) -> bool:
        return any(adapter.method.scheduled for adapter in self.adapters().values())

    @property
    def settled(self) -> bool:
        """Whether a model saved now has its final sparsity."""
        return all(adapter.settled for adapter in self.adapters().values())

    def setup(self, stage: str) -> None:
        """Make callbacks that look for the best model wait until the delta is sparse."""
        super().setup(stage)
        if stage != "fit" or not self._scheduled:
            return
        for callback in self.trainer.callbacks:
            _wait_until_settled(callback)

    def on_train_start(self) -> None:
        """Take up the schedule where a checkpoint left it."""
        super().on_train_start()
        for adapter in self.adapters().values():
            adapter.resume_at(self.trainer.global_step, self._progress())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make a step, and one of the method's schedule."""
        super().optimizer_step(*args, **kwargs)
        for adapter in self.adapters().values():
            # Lightning counts the step when this has returned.
            adapter.step(self._progress(ahead=1), optimizer=self.trainer.optimizers[0])

    def _progress(self, ahead: int = 0) -> float:
        return (self.trainer.global_step + ahead) / self._steps() if self._scheduled else 0.0

    # Averaged weights ---------------------------------------------------------------------------

    def _refresh(self) -> None:
        # The kept entries belong to one set of weights: those that were just put in place.
        for adapter in self.adapters().values():
            adapter.refresh()

    def on_validation_start(self) -> None:
        """Validate what a package of the weights that are in place now would hold."""
        super().on_validation_start()
        self._refresh()

    def on_validation_end(self) -> None:
        """Go on with the weights that are trained."""
        super().on_validation_end()
        self._refresh()

    def on_test_start(self) -> None:
        """Test what a package would hold."""
        super().on_test_start()
        self._refresh()

    def on_test_end(self) -> None:
        """Leave the deltas as they were."""
        super().on_test_end()
        self._refresh()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how far the schedule is: a package is made where there is no trainer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["e3sparse_progress"] = {
            name: adapter.progress for name, adapter in self.adapters().items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the schedule where the checkpoint left it."""
        super().on_load_checkpoint(checkpoint)
        for name, progress in checkpoint["e3sparse_progress"].items():
            self.adapters()[name].resume_at(0, progress)

    def adapted_model(self) -> nn.Module:
        """Return the model as it is evaluated, not yet merged. To be called once."""
        model: nn.Module = super().evaluation_model
        self._refresh()
        return model

    @property
    def evaluation_model(self) -> nn.Module:
        """The model as it is evaluated: averaged weights where there are any, merged, unfrozen."""
        model = self.adapted_model()
        for adapter in self.adapters().values():
            adapter.merge()
        return model

    # Metrics ------------------------------------------------------------------------------------

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, and those that count only once the delta is sparse."""
        super().on_validation_epoch_end()
        trainer = self.trainer
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint) and _waits(callback):
                assert callback.monitor is not None
                worst = torch.tensor(-torch.inf if callback.mode == "max" else torch.inf)
                metric = trainer.callback_metrics.get(callback.monitor.removeprefix(SETTLED), worst)
                self.log(callback.monitor, metric if self.settled else worst.to(metric))


def _waits(callback: ModelCheckpoint) -> bool:
    return callback.monitor is not None and callback.monitor.startswith(SETTLED)


def _wait_until_settled(callback: Callback) -> None:
    if isinstance(callback, EarlyStopping):
        raise ConfigError(
            "EarlyStopping could end the training before the delta is sparse: leave it out, or "
            "take a method without a schedule (soft_threshold)."
        )
    if isinstance(callback, ModelCheckpoint) and callback.monitor and not _waits(callback):
        callback.monitor = f"{SETTLED}{callback.monitor}"


class SparseLightningModule(SparseMixin, NequIPLightningModule):
    """`nequip.train.NequIPLightningModule` for a sparse delta."""


class SparseEMALightningModule(SparseMixin, EMALightningModule):
    """`nequip.train.EMALightningModule` for a sparse delta."""


class SparseScheduleFreeLightningModule(SparseMixin, ScheduleFreeLightningModule):
    """`nequip.train.ScheduleFreeLightningModule` for a sparse delta."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._refresh()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._refresh()

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._refresh()
