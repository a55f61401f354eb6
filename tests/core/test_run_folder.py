"""A run's folder from its beginning to its end, without a training in between."""

import json
import os
import shutil

import pytest

pytest.importorskip("pandas")

from e3sparse.errors import ConfigError
from e3sparse.output_folders import exchange
from e3sparse.training.run_folder import LISTING, RunFolder
from e3sparse.training.run_records import adapter_of, best_of, read_results, read_settings

pytestmark = pytest.mark.any_e3nn


def begun(out, *, overwrite=False):
    """Begin a run and write its settings and results."""
    folder = RunFolder.begin(out, {}, overwrite=overwrite)
    folder.start(".pth", base="base", inputs={"train": "a"})
    (folder.path / "config.yaml").write_text("lr: 0.01\n")
    folder.remember_settings()
    for name in ("results.json", "model.pth"):
        (folder.path / name).write_text("whole")
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_was_stopped_before_its_settings_is_begun_again(overwrite, tmp_path):
    out = tmp_path / "run"
    RunFolder.begin(out, {}, overwrite=False).start(".pth", base="b", inputs={})
    with pytest.raises(ConfigError, match=r"before it wrote its settings.*began it again\."):
        RunFolder.resumed(out)
    folder = RunFolder.begin(out, {}, overwrite=overwrite)
    assert folder.path == out
    folder.start(".pth", base="b", inputs={})
    (out / "config.yaml").write_text("lr: 0.01\n")
    assert RunFolder.resumed(out).path == out
    with pytest.raises(ConfigError, match="has not finished"):
        RunFolder.begin(out, {}, overwrite=False)


def test_an_older_run_stays_if_its_successor_was_stopped_before_its_settings(tmp_path):
    out = tmp_path / "run"
    begun(out).finish()
    RunFolder.begin(out, {}, overwrite=True).start(".pth", base="b", inputs={})
    with pytest.raises(ConfigError, match="began it again with --overwrite"):
        RunFolder.resumed(out)
    assert (out / "results.json").read_text() == "whole"
    RunFolder.begin(out, {}, overwrite=True)


def go_on(out):
    folder = RunFolder.resumed(out)
    folder.go_on(base="base", inputs={"train": "a"})
    return folder


def test_settings_that_changed_are_refused(tmp_path):
    begun(tmp_path / "run")
    go_on(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("lr: 0.02\n")
    with pytest.raises(ConfigError, match=r"other contents of: config\.yaml"):
        go_on(tmp_path / "run")


def test_runs_of_before_settings_were_recorded_go_on(tmp_path):
    folder = begun(tmp_path / "run")
    path = folder.path / LISTING
    path.write_text(path.read_text().replace('"settings"', '"unknown"'))
    assert folder.listing().settings is None
    go_on(tmp_path / "run")


def test_no_empty_folder_stays_beside(tmp_path):
    """A part of a run that had no step left leaves the folder of its log without a log."""
    out = tmp_path / "run"
    begun(out).finish()
    folder = begun(out, overwrite=True)
    (folder.path / "logs" / "version_1").mkdir(parents=True)
    folder.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("moved", range(4))
def test_a_run_that_was_stopped_while_it_took_its_place(moved, tmp_path, monkeypatch):
    out = tmp_path / "run"
    begun(out).finish()
    (out / "notes.txt").write_text("mine")  # else the whole folder is renamed
    folder = begun(out, overwrite=True)
    left = [moved]

    def stopping(one, two):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        one.rename(two)

    with monkeypatch.context() as patched:
        patched.setattr("e3sparse.training.run_folder.exchange", lambda *a: None)
        folder.finish()
        patched.setattr("e3sparse.output_folders.os.replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            exchange(tmp_path / "run.unfinished", out, LISTING)
    with pytest.raises(ConfigError, match="This ends that: e3sparse finetune --resume"):
        RunFolder.begin(out, {}, overwrite=True)
    with pytest.raises(ConfigError, match="has finished"):
        RunFolder.resumed(out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (out / "model.pth").read_text() == "whole"
    assert (out / "notes.txt").read_text() == "mine"


def log_of(folder, text):
    log = folder.path / "logs" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_bytes(text)
    return log


@pytest.mark.parametrize("text", [b"\xff\xfe", b"step,x\n1,2\n1,2,3,4\n", b"x\n1\n", b"\n\n,\n1"])
def test_damaged_logs_are_named_before_the_training(text, tmp_path):
    log = log_of(begun(tmp_path / "run"), text)
    with pytest.raises(ConfigError, match="remove it to do without its steps"):
        go_on(tmp_path / "run")
    log.unlink()
    go_on(tmp_path / "run")


def test_a_log_that_was_never_written_is_no_obstacle(tmp_path):
    log_of(begun(tmp_path / "run"), b"")
    assert go_on(tmp_path / "run").metrics().empty


FILES = {
    "config.yaml": b"method: budget\n",
    "results.json": json.dumps(
        {
            "errors": {
                when: {"energy_mae": 1, "forces_mae": 2} for when in ("valid before", "valid after")
            }
        }
    ).encode(),
    "checkpoints/best.ckpt": b"a",
    "adapter/adapter_config.json": b"b",
    "adapter/adapter_model.safetensors": b"c",
}
READERS = {
    "config.yaml": read_settings,
    "results.json": read_results,
    "checkpoints/best.ckpt": best_of,
    "adapter/adapter_config.json": adapter_of,
    "adapter/adapter_model.safetensors": adapter_of,
}


def finished(path):
    """Return the folder of a finished run, and whether each of its files can be read."""
    folder = begun(path)
    for name, content in FILES.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)
    folder.finish()
    for read in READERS.values():
        read(path)
    return path


@pytest.mark.parametrize("file", FILES)
def test_what_a_finished_run_wrote_is_known(file, tmp_path):
    run = finished(tmp_path / "run")
    (run / file).write_bytes(FILES[file] + b" ")
    for read in set(READERS.values()):
        if read == READERS[file]:
            with pytest.raises(ConfigError, match=rf"{file} is not what e3sparse finetune wrote"):
                read(run)
        else:
            read(run)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", ["removed", "a pipe", "a folder", "a dangling link"])
def test_what_is_no_file_any_more_is_said_and_not_waited_for(change, file, tmp_path):
    path = finished(tmp_path / "run") / file
    path.unlink()
    if change == "a pipe":
        os.mkfifo(path)
    elif change == "a folder":
        path.mkdir()
    elif change == "a dangling link":
        path.symlink_to("nothing-here")
    if (change, file) == ("removed", "checkpoints/best.ckpt"):
        assert best_of(tmp_path / "run") is None
        return
    with pytest.raises(ConfigError, match=f"{file} is missing, or is no file"):
        READERS[file](tmp_path / "run")


def test_an_adapter_may_be_removed_as_a_whole(tmp_path):
    run = finished(tmp_path / "run")
    shutil.rmtree(run / "adapter")
    assert adapter_of(run) == run / "adapter"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_listing_that_is_no_file(make, tmp_path):
    run = finished(tmp_path / "run")
    (run / LISTING).unlink()
    make(run / LISTING)
    with pytest.raises(ConfigError, match=f"{LISTING} is no file"):
        read_settings(run)


def test_runs_of_before_digests_were_recorded_are_read(tmp_path):
    folder = begun(tmp_path / "run")
    (folder.path / "config.yaml").write_bytes(FILES["config.yaml"])
    folder.finish()
    path = folder.path / LISTING
    path.write_text(path.read_text().replace('"digests"', '"unknown"'))
    (folder.path / "config.yaml").write_text("method: dense\n")
    assert read_settings(folder.path) == {"method": "dense"}
