"""Small models trained and packaged by NequIP's own commands, once a session."""

import pytest
import torch
import yaml
from commands import shell
from nequip.utils import global_state
from nequip_models import HERE, MODELS
from sample_frames import splits


@pytest.fixture(autouse=True)
def _global_state():
    """NequIP sets options for the whole process, the default dtype among them."""
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    global_state._GLOBAL_STATE_INITIALIZED = False


@pytest.fixture(scope="session")
def data_files(tmp_path_factory):
    """Paths of a train and a valid file."""
    return splits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def base_of(tmp_path_factory, data_files):
    """Return a function from a framework's name to a checkpoint and a package of it."""
    made = {}

    def make(framework):
        if framework not in made:
            folder = tmp_path_factory.mktemp(framework)
            config = yaml.safe_load((HERE / "pretrain.yaml").read_text())
            config |= {"model": MODELS[framework]} | {
                key: str(data_files[split]) for key, split in (("train", "train"), ("val", "valid"))
            }
            (folder / "pretrain.yaml").write_text(yaml.safe_dump(config))
            shell(
                "nequip-train", "-cp", folder, "-cn", "pretrain", f"hydra.run.dir={folder}",
                cwd=folder,
            )  # fmt: skip
            package = folder / f"{framework}.nequip.zip"
            shell("nequip-package", "build", folder / "best.ckpt", package, cwd=folder)
            made[framework] = folder / "best.ckpt", package
        return made[framework]

    return make


@pytest.fixture(scope="session", params=list(MODELS))
def base(request, base_of):
    """The checkpoint and the package of each kind of model."""
    return base_of(request.param)
