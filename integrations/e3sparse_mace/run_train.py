"""`e3sparse mace-run-train`: MACE's own training, with all its flags, of a sparse delta.

`mace_run_train` has no plug-in point, but its LoRA has one use of four functions, and training one
of another. These names are rebound while it runs: what MACE calls is ours.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from json import loads
from pathlib import Path
from typing import Any

import torch
from mace import tools
from mace.cli import run_train
from torch import nn

import e3sparse
from e3sparse.adapter.handle import Adapter
from e3sparse.errors import ConfigError
from e3sparse.files import replacing
from e3sparse_mace.backend import MACEPotential

SEAM = ("inject_LoRAs", "merge_lora_weights", "get_params_options", "get_optimizer")
"""What of `mace.cli.run_train` is rebound, and `mace.tools.train` besides."""

_REFUSED = {
    "lora": "it trains another delta",
    "enable_cueq": "the conversion drops deltas: train without it and convert the result",
    "only_cueq": "its layers are none of e3nn's: train without it and convert the result",
    "enable_oeq": "the conversion drops deltas: train without it and convert the result",
    "lbfgs": "it trains all parameters",
    "freeze": "the base model is frozen anyway: choose --e3sparse_targets",
}


def main(arguments: Sequence[str]) -> None:
    """Run `mace_run_train` on arguments of its own and ours.

    Raises
    ------
    ConfigError
        If flags cannot be combined, or this version of MACE has moved what we rebind.
    """
    ours, rest = _parser().parse_known_args(list(arguments))
    if "-h" in rest or "--help" in rest:
        _parser().print_help()
    args = tools.build_default_arg_parser().parse_args(rest)
    if args.foundation_model is None:
        raise ConfigError("Give --foundation_model: a delta is of a model that is trained already.")
    for flag, reason in _REFUSED.items():
        if getattr(args, flag, None):
            raise ConfigError(f"--{flag} cannot be combined with a sparse delta: {reason}.")
    args.lora = True
    # MACE keeps the epoch of the lowest loss, which would be one from before the delta is sparse.
    args.save_all_checkpoints = True
    training = SparseTraining(ours, args)
    with training.in_place():
        run_train.run(args)
    training.check_was_used()


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "e3sparse mace-run-train",
        description="mace_run_train with a sparse delta; all other flags are MACE's.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--e3sparse_targets",
        nargs="+",
        default=["linear"],
        metavar="TARGET",
        help="Layers that get a delta: linear (by default), products, all, species or names with "
        "wildcards; `e3sparse inspect MODEL` lists them.",
    )
    parser.add_argument(
        "--e3sparse_method",
        default="budget",
        metavar="METHOD",
        help="budget (by default), soft_threshold, low_rank, dense or fixed_mask.",
    )
    parser.add_argument(
        "--e3sparse_target_sparsity",
        type=float,
        metavar="SHARE",
        help="Share of zeros in the delta at the end; 0.97 for budget if left out.",
    )
    parser.add_argument(
        "--e3sparse_settings",
        type=loads,
        default={},
        metavar="JSON",
        help="Other settings of the method, such as '{\"growth\": 0}'.",
    )
    return parser


class SparseTraining:
    """What MACE calls in the place of its LoRA.

    Parameters
    ----------
    ours
        Our flags.
    args
        MACE's.
    """

    def __init__(self, ours: Namespace, args: Namespace) -> None:
        self.ours, self.args = ours, args
        self.adapter: Adapter | None = None
        self.total_steps = 0
        self.two_stages = False
        self.rank = 0
        self.merges = 0
        self.called: set[str] = set()
        self._originals: dict[str, Any] = {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Rebind what MACE calls, and bind it back."""
        missing = [name for name in SEAM if not hasattr(run_train, name)]
        if missing or not callable(tools.train):
            raise ConfigError(
                f"This version of MACE has no {', '.join(missing) or 'tools.train'} where e3sparse "
                "hooks into its training: use a version that `pip install 'e3sparse[mace]'` "
                "installs, or `e3sparse finetune`."
            )
        self._originals = {name: getattr(run_train, name) for name in SEAM}
        train = tools.train
        try:
            for name in SEAM:
                setattr(run_train, name, self._noted(name, getattr(self, name)))
            tools.train = self._noted("train", lambda **options: self.train(train, options))
            yield
        finally:
            for name, original in self._originals.items():
                setattr(run_train, name, original)
            tools.train = train

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.called.add(name)
            return function(*arguments, **options)

        return call

    def check_was_used(self) -> None:
        """Raise if MACE went past one of our functions, so that something else was trained."""
        expected = {*SEAM, "train"} if not getattr(self.args, "dry_run", False) else set()
        if self.rank > 0:
            expected.discard("merge_lora_weights")  # the first rank alone saves
        if unused := expected - self.called:
            raise ConfigError(
                f"MACE did not call {', '.join(sorted(unused))}: this version trains in another "
                "way, and what it wrote is not what was asked for."
            )

    def inject_LoRAs(  # noqa: N802 -- MACE's name
        self, model: nn.Module, rank: int = 4, alpha: int = 1
    ) -> nn.Module:
        """Patch the model, which stands as it will be trained."""
        heads = list(getattr(model, "heads", None) or ["Default"])
        device = str(next(model.parameters()).device)
        potential = MACEPotential(self.args.name, model, device=device, dtype=None, head=heads[0])
        settings = dict(self.ours.e3sparse_settings)
        if self.ours.e3sparse_target_sparsity is not None:
            settings["target_sparsity"] = self.ours.e3sparse_target_sparsity
        self.adapter = potential.patch(
            self.ours.e3sparse_targets, self.ours.e3sparse_method, **settings
        )
        if self.adapter.method.calibrated:
            raise ConfigError(
                "A mask that is calibrated on the data cannot be made from here: use "
                "`e3sparse finetune`."
            )
        if self.adapter.method.judged:
            raise ConfigError(
                "MACE's own training cannot stop pruning by itself: give "
                "--e3sparse_target_sparsity and no tolerance, or use `e3sparse finetune`."
            )
        model.register_load_state_dict_post_hook(self._loaded)
        return model

    def _loaded(self, model: nn.Module, keys: Any) -> None:
        # A checkpoint holds averaged weights with the choice of those that were averaged.
        if self.adapter is not None and self.adapter.settled:
            self.adapter.refresh()

    def get_params_options(self, args: Namespace, model: nn.Module) -> dict[str, Any]:
        """Return the parameters of the delta, with MACE's settings of the optimizer."""
        assert self.adapter is not None
        options: dict[str, Any] = self._originals["get_params_options"](args, model)
        groups = self.adapter.param_groups(args.lr)
        if args.optimizer == "adam" and any(group["weight_decay"] for group in groups):
            raise ConfigError(
                f"Method '{self.adapter.method.name}' needs a weight decay that is decoupled from "
                "the gradient, which --optimizer=adam, MACE's default, has not: add "
                "--optimizer=adamw or --optimizer=schedulefree."
            )
        schedule_free = args.optimizer == "schedulefree"
        first = args.beta1_schedulefree if schedule_free else args.beta
        for group in groups:
            if "betas" in group:
                group["betas"] = (first, group["betas"][1])
        return options | {"params": groups}

    def get_optimizer(self, args: Namespace, options: dict[str, Any]) -> torch.optim.Optimizer:
        """Return MACE's optimizer; each of its steps is one of the method's schedule."""
        optimizer: torch.optim.Optimizer = self._originals["get_optimizer"](args, options)
        optimizer.register_step_post_hook(self._stepped)
        return optimizer

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        assert self.adapter is not None
        group = optimizer.param_groups[0]
        # Counted by the optimizer, whose state a restart brings back.
        state = optimizer.state[group["params"][0]]
        steps = int(state["step"] if "step" in state else group["k"])
        self.adapter.resume_at(steps - 1, (steps - 1) / self.total_steps)
        self.adapter.step(min(1.0, steps / self.total_steps), optimizer=optimizer)

    def train(self, train: Callable[..., Any], options: dict[str, Any]) -> Any:
        """Train as MACE does, to the last epoch: the delta is sparse at the end only.

        Stage Two (`--swa`) leaves a model of its own beside that of stage one, so the schedule
        ends with stage one, and both are sparse.
        """
        self._refuse_earlier_run(options["checkpoint_handler"].io)
        epochs, swa = options["max_num_epochs"], options.get("swa")
        # torch averages over copies by the order of buffers, so the copy must have the same.
        present = _elements(options["model"], options["train_loader"])
        for model in (options["model"], *([swa.model.module] if swa else [])):
            for adapter in e3sparse.adapters(model).values():
                adapter.freeze_absent_species(present)
        self.rank = options.get("rank", 0)
        stage_one = epochs if swa is None else min(swa.start, epochs)
        self.two_stages = stage_one < epochs
        # Only epochs that are evaluated leave a checkpoint.
        last = stage_one - 1 - (stage_one - 1) % options["eval_interval"]
        self.total_steps = max(1, (last + 1) * len(options["train_loader"]))
        return train(**options | {"patience": epochs + 1})

    def _refuse_earlier_run(self, checkpoints: Any) -> None:
        # MACE loads the checkpoint of the highest epoch at the end, whichever run wrote it.
        earlier = list(Path(checkpoints.directory).glob(f"{escape(checkpoints.tag)}_epoch-*.pt"))
        if earlier and not self.args.restart_latest:
            raise ConfigError(
                f"{checkpoints.directory} holds {len(earlier)} checkpoints of an earlier run of "
                "this --name and --seed, which MACE could take for this one's: give another "
                "--name, remove them, or go on with that run by --restart_latest."
            )

    def merge_lora_weights(self, model: nn.Module, inplace: bool = True) -> nn.Module:
        """Save the adapter and its base, and merge it in what MACE is about to save.

        MACE rebuilds a foundation model for the elements, heads and energies of the data: what
        the adapter belongs to is not the file that was named but that model, `<name>_base.model`.
        Beside `<name>.model` it is `<name>_adapter`, and beside the model of stage two
        `<name>_stagetwo_adapter`.
        """
        (adapter,) = e3sparse.adapters(model).values()
        self.merges += 1
        stage = "_stagetwo" if self.two_stages and self.merges == 2 else ""
        folder = Path(self.args.model_dir)
        base = folder / f"{self.args.name}_base.model"
        adapter.save_pretrained(folder / f"{self.args.name}{stage}_adapter", base_model=str(base))
        adapter.restore()
        with replacing(base) as temporary:
            torch.save(model, temporary)
        adapter.attach()
        return adapter.merge()


def _elements(model: Any, loader: Any) -> set[int]:
    """Return the atomic numbers that occur in the frames of a loader of MACE's."""
    frames = loader.dataset
    kinds = {int(k) for i in range(len(frames)) for k in frames[i].node_attrs.argmax(dim=1)}
    return {int(model.atomic_numbers[k]) for k in kinds}
