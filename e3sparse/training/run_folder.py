"""A run's folder: the names in it, what the run was made of, and how it takes an older one's place.

A new run of a folder that holds an older one is written beside it, and takes its place when it has
finished: what goes wrong before leaves the older one as it was.
"""

import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from pydantic import Field

from e3sparse.errors import ConfigError
from e3sparse.files import LEFTOVERS
from e3sparse.output_folders import (
    Listing,
    check_output,
    digest,
    exchange,
    read_listing,
    remove_listed,
    write_listing,
)
from e3sparse.training.run_records import (
    ADAPTER,
    BEST,
    CHECKPOINTS,
    CONFIG,
    LISTING,
    METRICS,
    RESULTS,
    RUN,
    SPINS,
    read_checkpoint,
    resume_command,
)

LAST, _BEFORE = "last.ckpt", "last.previous.ckpt"
_OF_AN_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "README.md")
_FIXED = (
    *(CONFIG, RESULTS, METRICS, "results.csv", "versions.json"),
    *("figures/learning.png", "figures/parity.png"),
    *(f"{CHECKPOINTS}/{name}" for name in (BEST, LAST, _BEFORE)),
    *(f"{ADAPTER}/{name}" for name in _OF_AN_ADAPTER),
    *(f"{SPINS}/{name}" for name in ("spin_config.json", "spin_model.safetensors")),
)


class RunListing(Listing):
    """What a run wrote, and what it was made of.

    Attributes
    ----------
    run
        Name of the run, which its checkpoints carry.
    inputs
        SHA-256 of each file that was read, by what it was read as.
    base
        Fingerprint of the base model.
    references
        Energy shifts in eV by atomic number that the run was begun with.
    settings
        SHA-256 of `config.yaml`, in which a digit that changed would go unnoticed.
    finished
        Whether it has come to its end.
    """

    written_by: str = "e3sparse finetune"
    run: str | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    base: str | None = None
    references: dict[int, float] | None = None
    settings: str | None = None
    finished: bool = False


class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    out
        Where its results are, or will be.
    path
        Where it is written now; `out` if None.
    """

    def __init__(self, out: Path, path: Path | None = None) -> None:
        self.out = out
        self.path = out if path is None else path

    @classmethod
    def begin(cls, out: Path, inputs: Mapping[str, Path], *, overwrite: bool) -> "RunFolder":
        """Return the folder that a new run is to be written to; nothing is changed yet.

        Parameters
        ----------
        out
            As the user gave it.
        inputs
            The files that will be read, by their flags.
        overwrite
            Whether an older run may be replaced.

        Raises
        ------
        ConfigError
            As `check_output` does, or if an older run waits to be resumed.
        """
        out = out.resolve() if ".." in out.parts else out
        begun = read_listing(out, LISTING, RunListing)
        # Of a run that was stopped before it wrote its settings there is nothing to keep.
        barely = begun is not None and _without_settings(out, begun)
        waits = begun is not None and not (begun.finished or barely)
        if waits and not overwrite:
            raise ConfigError(
                f"{out} holds a run that has not finished. Give --resume to go on with it, "
                "--overwrite to replace it, or another --out."
            )
        whole = read_listing(_beside(out), LISTING, RunListing)
        if whole is not None and whole.finished and overwrite:
            raise ConfigError(
                f"A run has finished in {_beside(out)}, and was stopped while it took the place "
                f"of the older one in {out}. This ends that: {resume_command(out)}"
            )
        check_output(out, LISTING, "a run folder", inputs, overwrite=overwrite or barely)
        folder = cls(out, out if begun is None or barely else _beside(out))
        if folder.path != out:
            check_output(folder.path, LISTING, "a run folder", inputs, overwrite=True)
        return folder

    @classmethod
    def resumed(cls, out: Path) -> "RunFolder":
        """Return the folder of a run that was stopped.

        Raises
        ------
        ConfigError
            If there is none, or it has finished.
        """
        for path in (_beside(out), out):
            listing = read_listing(path, LISTING, RunListing)
            if listing is None:
                continue
            if listing.finished and path != out:
                exchange(path, out, LISTING)  # that is where it was stopped
                continue
            if listing.finished:
                raise ConfigError(
                    f"The run in {out} has finished: there is nothing to go on with. Give another "
                    "--out for more steps."
                )
            if _without_settings(path, listing):
                again = "" if path == out else " with --overwrite"
                raise ConfigError(
                    f"The run in {path} was stopped before it wrote its settings, so that there is "
                    f"nothing to go on with. Give the command that began it again{again}."
                )
            return cls(out, path)
        raise ConfigError(f"There is no run to resume in {out}: it has no {LISTING}.")

    def start(
        self, suffix: str, *, base: str, inputs: Mapping[str, str], levels: Sequence[str] = ()
    ) -> None:
        """Make the folder, with the listing of what will be written; what was begun there goes."""
        begun = read_listing(self.path, LISTING, RunListing)
        if begun is not None:
            remove_listed(self.path, LISTING, begun)
        files = [*_FIXED, f"model{suffix}", *_logs(0)]
        for name in levels:
            files.append(f"{CHECKPOINTS}/sparsity-{name}.ckpt")
            files += [f"{level_folder(name)}/{file}" for file in _OF_AN_ADAPTER]
        run = uuid.uuid4().hex
        self._write(RunListing(run=run, files=files, inputs=dict(inputs), base=base))

    def listing(self) -> RunListing:
        """Return what the folder says of the run."""
        found = read_listing(self.path, LISTING, RunListing)
        assert found is not None
        return found

    def remember_references(self, references: Mapping[int, float]) -> None:
        """Record the energy references that the run was begun with."""
        self._write(self.listing().model_copy(update={"references": dict(references)}))

    def remember_settings(self) -> None:
        """Record the contents of `config.yaml`, which a run that goes on is read from."""
        self._write(self.listing().model_copy(update={"settings": digest(self.path / CONFIG)}))

    def go_on(self, *, base: str, inputs: Mapping[str, str]) -> None:
        """Make ready to go on.

        Raises
        ------
        ConfigError
            If the run was begun with other files, settings or another base model, or a log of it
            is damaged; the message names them.
        """
        listing = self.listing()
        other = [name for name in listing.inputs if inputs.get(name) != listing.inputs[name]]
        if listing.base is not None and listing.base != base and "model" not in other:
            other.append("model")
        if listing.settings is not None and listing.settings != digest(self.path / CONFIG):
            other.append(CONFIG)
        if other:
            raise ConfigError(
                f"The run in {self.out} was begun with other contents of: {', '.join(other)}. "
                "Put them back as they were to go on, or begin anew with another --out."
            )
        self.metrics()  # what is wrong with them is said before the training, not after
        for leftover in self.path.rglob(LEFTOVERS):
            leftover.unlink()
        number = 0
        while (self.path / _logs(number)[0]).exists():
            number += 1
        files = list(dict.fromkeys([*listing.files, *_logs(number)]))
        self._write(listing.model_copy(update={"files": files}))

    def finish(self) -> None:
        """Mark the run as finished, and put it in the place of an older one."""
        listing = self.listing()
        there = [file for file in listing.files if (self.path / file).is_file()]
        digests = {file: digest(self.path / file) for file in there}
        update = {"finished": True, "files": there, "digests": digests}
        self._write(listing.model_copy(update=update))
        if self.path != self.out:
            exchange(self.path, self.out, LISTING)
            self.path = self.out

    def _write(self, listing: RunListing) -> None:
        write_listing(self.path, LISTING, listing)

    @property
    def resume_command(self) -> str:
        """What goes on with the run."""
        return resume_command(self.out)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / CHECKPOINTS

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.checkpoints / BEST

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that can be read; None if none has been written.

        Raises
        ------
        ConfigError
            If there are some, and all are damaged.
        """
        there = [self.checkpoints / name for name in (LAST, _BEFORE)]
        there = [path for path in there if path.exists()]
        listing = read_listing(self.path, LISTING, RunListing)
        run = None if listing is None else listing.run
        for path in there:
            try:
                checkpoint = read_checkpoint(path)
                if run is not None and checkpoint.get(RUN) != run:
                    raise ConfigError(f"{path} is a checkpoint of another run.")
            except ConfigError as error:
                warnings.warn(f"{error} The one before it is taken.", stacklevel=2)
                continue
            return path
        if there:
            raise ConfigError(
                f"No checkpoint in {self.checkpoints} is whole and of this run, so it cannot go "
                "on: begin it anew with --overwrite."
            )
        return None

    def metrics(self) -> pd.DataFrame:
        """Return the rows of all parts of the run, each step once.

        Raises
        ------
        ConfigError
            If a log is missing or damaged.
        """
        logs = sorted(self.path.glob("logs/version_*/metrics.csv"), key=_number)
        parts: list[pd.DataFrame] = []
        for log in logs:
            try:
                part = pd.read_csv(log) if log.is_file() else pd.DataFrame()
            except pd.errors.EmptyDataError:
                continue  # of a run that was stopped, or whose disk was full, as it wrote this
            except (pd.errors.ParserError, UnicodeDecodeError):
                part = pd.DataFrame()
            if "step" not in part:
                raise ConfigError(f"{log} is damaged: remove it to do without its steps.")
            if len(part):
                # What came after the checkpoint from which the run went on was done again.
                begun = part["step"].min()
                parts = [p[p["step"] < begun] for p in parts] + [part]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _without_settings(path: Path, listing: RunListing) -> bool:
    return not listing.finished and not (path / CONFIG).exists()


def _beside(out: Path) -> Path:
    full = out.resolve()
    return full.with_name(f"{full.name}.unfinished")


def level_folder(name: str) -> str:
    """Return the adapter folder of a level of sparsity, relative to the run's."""
    return f"adapters/{name}"


def _logs(number: int) -> list[str]:
    return [f"logs/version_{number}/{name}" for name in ("metrics.csv", "hparams.yaml")]


def _number(log: Path) -> int:
    return int(log.parent.name.removeprefix("version_"))


def digests(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its flag without dashes."""
    return {flag.lstrip("-"): digest(path) for flag, path in inputs.items()}
