"""Damaged adapter, spin and run folders."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from faults_damage import DAMAGES
from faults_outcomes import GOOD, Found, Printed, command, of_call, of_command
from faults_subjects import (
    FOLD_INTO,
    SPECIES,
    Project,
    bits,
    network,
    numbers_of,
    restored,
    save_adapter,
    tiny_sevennet,
)

import e3sparse
from e3sparse.adapter.file import read_values


class _Folders:
    """Tries on a copy of a folder, one damage after the other."""

    damages = DAMAGES
    copy: Path

    def __init__(self, place: Path, seed: int) -> None:
        self.seed = seed
        self.copy = place / "damaged"
        self.place = place

    def attack(self, number: int) -> str:
        """Return the name of the damage."""
        return list(self.damages)[number % len(self.damages)]

    def random(self, number: int) -> Random:
        """Return the random numbers of a try."""
        return Random(f"{type(self).__name__} {self.seed} {number}")

    def damaged(self, number: int, pristine: Path, others: list[Path], files: list[str]) -> Path:
        """Put a damaged copy of a folder in place."""
        folder = restored(pristine, self.copy)
        there = [folder / name for name in files if (folder / name).is_file()]
        self.damages[self.attack(number)](there, others, self.random(number))
        return folder


class Adapters(_Folders):
    """`e3sparse.load` and `read_values` on damaged adapter folders.

    Parameters
    ----------
    load
        What is attacked; another one in the tests of this script.
    """

    tries, block, limit = 10_400, 1040, 10.0
    files = ("adapter_config.json", "adapter_model.safetensors")

    def __init__(self, place: Path, seed: int, load: Callable[..., Any] = e3sparse.load) -> None:
        super().__init__(place, seed)
        self.load = load
        # Two saves of the same layers, as after one more epoch, of other layers, and a sparse one.
        made = {"mine": (1, "all", "dense"), "later": (2, "all", "dense")}
        made |= {"linear": (1, "linear", "dense"), "sparse": (3, "all", "fixed_mask")}
        for name, settings in made.items():
            save_adapter(place / name, *settings)
        self.saves = [place / name for name in made]
        self.model = network()
        self.before = self._state()
        self.right = {save: (self._loaded(save), self._read(save)) for save in self.saves}

    def _state(self) -> object:
        classes = [(name, type(module)) for name, module in self.model.named_modules()]
        return classes, {name: bits(t) for name, t in self.model.state_dict().items()}

    def _loaded(self, folder: Path) -> object:
        adapter = self.load(self.model, folder, species=SPECIES, fold_into=FOLD_INTO)
        values = {name: bits(value) for name, value in adapter.values().items()}
        statistics = {name: bits(value) for name, value in adapter.statistics().items()}
        references = dict(adapter.energy_references)
        adapter.remove()
        return values, statistics, references

    def _read(self, folder: Path) -> object:
        return {name: bits(value) for name, value in read_values(folder).items()}

    def attempt(self, number: int) -> Found:
        """Load a damaged folder onto a model, and read it without one."""
        pristine = self.random(number).choice([self.saves[0], self.saves[3]])
        others = [save for save in self.saves if save != pristine]
        folder = self.damaged(number, pristine, others, list(self.files))
        loaded, read = self.right[pristine]
        found = of_call(lambda: self._loaded(folder), loaded)
        if self._state() != self.before:
            self.model = network()
            return Found("silent", f"the model was changed, and the folder {found.outcome}")
        again = of_call(lambda: self._read(folder), read)
        return found if again.outcome in GOOD or found.outcome not in GOOD else again


class Spins(_Folders):
    """`e3sparse.magnetism.load` on damaged folders of spin-aware layers."""

    tries, block, limit = 1300, 130, 30.0
    files = ("spin_config.json", "spin_model.safetensors")

    def __init__(self, place: Path, seed: int) -> None:
        from e3sparse.magnetism import add_spins, save
        from e3sparse.potentials.backends import load_potential

        super().__init__(place, seed)
        self.backbone = load_potential(str(tiny_sevennet(place / "base.pth")))
        settings = {"channels": 2, "hidden": 2, "radial_width": 4, "readout_width": 4, "lmax": 1}
        for name, drawn, lmax in (("mine", 1, 1), ("later", 2, 1), ("other", 1, 2)):
            spins = add_spins(self.backbone, seed=drawn, **settings | {"lmax": lmax})
            save(spins, place / name, {1, 8})
        self.right = self._loaded(place / "mine")

    def _loaded(self, folder: Path) -> object:
        from e3sparse.magnetism import load

        layers = load(self.backbone, folder).layers
        state = {name: bits(value) for name, value in layers.state_dict().items()}
        return state, layers.settings

    def attempt(self, number: int) -> Found:
        """Load a damaged folder onto its backbone."""
        others = [self.place / "later", self.place / "other"]
        folder = self.damaged(number, self.place / "mine", others, list(self.files))
        return of_call(lambda: self._loaded(folder), self.right)


class Runs(_Folders):
    """`compare`, `adapters diff`, `report` and `finetune --resume` on damaged run folders."""

    tries, block, limit = 1300, 65, 200.0
    read = ("e3sparse-run.json", "config.yaml", "results.json")
    adapter = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    resumed = (
        "e3sparse-run.json", "config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
        "checkpoints/last.previous.ckpt", "logs/version_0/metrics.csv",
    )  # fmt: skip

    def __init__(self, place: Path, seed: int) -> None:
        super().__init__(place, seed)
        self.project = Project(place / "project")
        for name, drawn in (("whole", 0), ("other", 1)):
            self._made(place / name, drawn)
        self._made(self.copy, 0, stop=4)
        shutil.copytree(self.copy, place / "stopped")
        self.right: dict[str, object] = {}
        for name in ("compare", "diff", "report", "resume"):
            restored(place / self.pristine(name), self.copy)
            self.right[name] = self._answer(name, self._call(name))
        restored(place / "whole", self.copy)
        self.right["read"] = self._read()

    def _made(self, out: Path, seed: int, stop: int | None = None) -> None:
        from e3sparse.training.module import FineTuning

        original = FineTuning.training_step

        def stopping(module: FineTuning, batch: Any, index: int) -> Any:
            if module.trainer.global_step == stop:
                raise KeyboardInterrupt
            return original(module, batch, index)

        with mock.patch.object(FineTuning, "training_step", stopping):
            printed = command(*self.project.arguments(out, seed=seed))
        assert printed.code == (0 if stop is None else 130), printed

    @staticmethod
    def pristine(name: str) -> str:
        """Return the run that a command is tried on."""
        return "stopped" if name == "resume" else "whole"

    def does(self, number: int) -> str:
        """Return the command of a try: the slow ones, which train or draw, are few."""
        turn = number // len(self.damages)
        if turn % 10 == 9:
            return "resume" if turn % 20 == 9 else "report"
        return ("compare", "diff", "read")[turn % 3]

    def attack(self, number: int) -> str:
        """Return the name of the command and the damage."""
        return f"{self.does(number)}, {super().attack(number)}"

    def damaged(self, number: int, pristine: Path, others: list[Path], files: list[str]) -> Path:
        """Put a damaged copy of a run folder in place."""
        folder = restored(pristine, self.copy)
        there = [folder / name for name in files if (folder / name).is_file()]
        name = super().attack(number)
        if name == "tensor header" and not any(f.suffix == ".safetensors" for f in there):
            name = "bytes flipped"
        self.damages[name](there, others, self.random(number))
        return folder

    def _call(self, name: str) -> Printed:
        report = self.place / "report"
        if name == "resume":
            return command("finetune", "--resume", "--out", self.copy)
        if name == "compare":
            return command("compare", self.place / "other", self.copy)
        if name == "diff":
            other = self.place / "other" / "adapter"
            return command("adapters", "diff", self.copy / "adapter", other)
        shutil.rmtree(report, ignore_errors=True)
        return command("report", self.copy, "--out", report)

    def _answer(self, name: str, printed: Printed) -> object:
        if name == "resume":
            return numbers_of(self.copy)
        if name == "report":
            tables = sorted((self.place / "report" / "tables").iterdir())
            return [path.read_text() for path in tables]
        return printed.out

    def _read(self) -> object:
        from e3sparse.analysis.reading import read_change

        change = read_change(self.copy)
        deltas = {name: bits(value) for name, value in change.deltas.items()}
        return deltas, change.trained_on, change.method

    def attempt(self, number: int) -> Found:
        """Run a command on a damaged run folder."""
        name = self.does(number)
        pristine = self.place / self.pristine(name)
        files = {"compare": self.read, "diff": self.adapter, "resume": self.resumed}.get(
            name, (*self.read, *self.adapter)
        )
        others = [self.place / "other"]
        self.damaged(number, pristine, others, list(files))
        if name == "read":
            return of_call(self._read, self.right[name])
        return of_command(
            lambda: self._call(name), self.right[name], lambda printed: self._answer(name, printed)
        )
