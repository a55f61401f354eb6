"""What may be replaced, and that nothing else is ever touched."""

import contextlib
import os

import pytest
import torch

from e3sparse.errors import ConfigError, E3SparseError
from e3sparse.files import replacing
from e3sparse.output_folders import (
    Listing,
    check_output,
    exchange,
    read_listing,
    remove_listed,
    write_listing,
)

pytestmark = pytest.mark.any_e3nn

NAME = "e3sparse-test.json"


def written(folder, files, text="ours"):
    """Write an output folder with these files."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    write_listing(folder, NAME, Listing(written_by="a test", files=list(files)))
    return folder


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def check(folder, inputs=None, overwrite=True):
    check_output(folder, NAME, "a test folder", inputs or {}, overwrite=overwrite)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a config, data, a model and an output of ours in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("config.yaml", "train.xyz", "model.pth"):
        (folder / name).write_text("mine")
    written(folder / "out", ["config.yaml", "figures/a.png"])
    monkeypatch.chdir(folder)
    return folder


def test_a_new_or_empty_folder_or_one_of_ours_is_taken(project):
    check(project / "new", overwrite=False)
    (project / "empty").mkdir()
    check(project / "empty", overwrite=False)
    check(project / "out")


@pytest.mark.parametrize(
    ("out", "says"),
    [
        (".", "that you are in"),
        ("out/..", "that you are in"),
        ("../project", "that you are in"),
        ("train.xyz", "is a file"),
        ("link", "symbolic link"),
        ("foreign", "is not a test folder"),
        ("new/..", "that you are in"),
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_not_ours_is_refused(out, says, overwrite, project):
    (project / "link").symlink_to(project / "out")
    (project / "foreign").mkdir()
    (project / "foreign" / "config.yaml").write_text("mine")
    before = contents(project)
    with pytest.raises(ConfigError, match=says):
        check(project / out, overwrite=overwrite)
    assert contents(project) == before


def test_a_folder_that_could_not_be_made_is_refused_at_once(project, monkeypatch):
    with pytest.raises(ConfigError, match=r"train\.xyz is a file, so that .* cannot be made"):
        check(project / "train.xyz" / "below" / "run")
    (project / "dangling").symlink_to(project / "nowhere")
    with pytest.raises(ConfigError, match="symbolic link, to"):
        check(project / "dangling")
    with pytest.raises(OSError, match="too long"):
        check(project / ("n" * 300) / "run")
    # Whoever runs this may be root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="may not be written into"):
        check(project / "new")
    with pytest.raises(ConfigError, match="may not be written into"):
        check(project / "out")


@pytest.mark.parametrize("here", ["out", "out/figures"])
def test_the_folder_that_one_is_in_is_refused(here, project, monkeypatch):
    monkeypatch.chdir(project / here)
    with pytest.raises(ConfigError, match="that you are in"):
        check(project / "out")


def test_inputs_inside_are_refused(project):
    inside = project / "out" / "figures" / "train.xyz"
    inside.write_text("mine")
    with pytest.raises(ConfigError, match=r"--train .*train\.xyz lies in"):
        check(project / "out", {"--train": inside})
    (project / "way").symlink_to(inside)
    with pytest.raises(ConfigError, match="--train"):
        check(project / "out", {"--train": project / "way"})
    check(project / "out", {"--train": project / "train.xyz"})


def test_without_the_word_nothing_is_replaced(project):
    with pytest.raises(ConfigError, match="--overwrite"):
        check(project / "out", overwrite=False)


@pytest.mark.parametrize(
    "listing",
    [
        '{"written_by": "x", "files": ["../train.xyz"]}',
        '{"written_by": "x", "files": ["/etc/passwd"]}',
        '{"written_by": "x", "files": ["figures/../../train.xyz"]}',
        '{"written_by": "x", "files": [""]}',
        '{"written_by": "x", "fil',
        "[]",
    ],
)
def test_a_listing_that_lies_is_refused(listing, project):
    (project / "out" / NAME).write_text(listing)
    with pytest.raises(ConfigError, match=r"damaged|not in the folder"):
        check(project / "out")


def test_a_listing_that_is_no_text_is_refused(project):
    (project / "out" / NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        check(project / "out")


def removed(folder):
    remove_listed(folder, NAME, read_listing(folder, NAME, Listing))


def test_what_is_listed_goes_and_nothing_else(project):
    (project / "out" / "figures" / "mine.png").write_text("mine")
    (project / "out" / "figures" / ".writing-x.png").write_text("half")
    removed(project / "out")
    assert contents(project / "out") == {"figures/mine.png": "mine"}


def test_a_folder_with_nothing_else_goes_too(project):
    removed(project / "out")
    assert not (project / "out").exists()


def test_links_are_not_followed(project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_text("mine")
    (project / "out" / "figures" / "a.png").unlink()
    (project / "out" / "figures").rmdir()
    (project / "out" / "figures").symlink_to(elsewhere)
    (project / "out" / "config.yaml").unlink()
    (project / "out" / "config.yaml").symlink_to(project / "config.yaml")
    removed(project / "out")
    assert contents(elsewhere) == {"a.png": "mine"}
    assert (project / "config.yaml").read_text() == "mine"


def test_a_new_folder_takes_the_place_of_an_older_one(project):
    (project / "out" / "notes.txt").write_text("mine")
    new = written(project / "new", ["config.yaml", "model.pth"], "new")
    exchange(new, project / "out", NAME)
    found = contents(project / "out")
    assert found.pop(NAME)
    assert found == {"config.yaml": "new", "model.pth": "new", "notes.txt": "mine"}
    assert not new.exists()
    assert read_listing(project / "out", NAME, Listing).files == ["config.yaml", "model.pth"]


def test_somebody_s_file_is_not_replaced_by_a_new_one(project):
    (project / "out" / "model.pth").write_text("mine")
    new = written(project / "new", ["config.yaml", "model.pth"], "new")
    before = contents(project)
    with pytest.raises(ConfigError, match="was not written by e3sparse"):
        exchange(new, project / "out", NAME)
    assert contents(project) == before


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("step", range(8))
def test_an_exchange_that_is_interrupted_can_be_ended(step, foreign, project, monkeypatch):
    if foreign:
        (project / "out" / "notes.txt").write_text("mine")
    new = written(project / "new", ["config.yaml", "tables/t.csv"], "new")
    calls = []

    class Killed(BaseException):
        pass

    def killing(original):
        def call(*arguments, **options):
            if len(calls) == step:
                raise Killed
            calls.append(original)
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((os, "replace"), (type(new), "unlink"), (type(new), "rename")):
            patched.setattr(owner, name, killing(getattr(owner, name)))
        with contextlib.suppress(Killed):
            exchange(new, project / "out", NAME)
    if new.exists() and (new / NAME).exists():
        exchange(new, project / "out", NAME)
    found = contents(project / "out")
    assert found.pop(NAME)
    mine = {"notes.txt": "mine"} if foreign else {}
    assert found == {"config.yaml": "new", "tables/t.csv": "new"} | mine


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("numbers", [9, 10**6])
def test_a_full_disk_under_torch_is_a_sentence(numbers, tmp_path):
    """What torch's own writer says of a full disk is no OSError."""
    path = tmp_path / "model.pth"
    path.write_text("before")
    with pytest.raises(E3SparseError, match="cannot be written whole"), replacing(path):
        torch.save(torch.zeros(numbers), "/dev/full")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"), replacing(tmp_path / "file"):
        raise RuntimeError("CUDA error: out of memory")
