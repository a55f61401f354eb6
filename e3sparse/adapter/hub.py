"""Adapter folders on the Hugging Face Hub, by the optional package `huggingface_hub`.

`hf://org/name` and `hf://org/name@revision` can stand wherever an adapter folder can. Only the two
files of an adapter are fetched, which hold no code.
"""

import re
from pathlib import Path
from typing import Any

from e3sparse.adapter.config import CONFIG_NAME, TENSORS_NAME
from e3sparse.errors import AdapterFileError, ConfigError

# As a path, which loses a slash, too.
_ADDRESS = re.compile(r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")


def local_folder(where: str | Path) -> Path:
    """Return the folder that a path or an address of the hub stands for; the latter is fetched.

    Raises
    ------
    AdapterFileError
        If it cannot be fetched, or has no adapter in it.
    ConfigError
        If `huggingface_hub` is not installed, or the address is none.
    """
    if not str(where).startswith("hf:"):
        return Path(where)
    repo, revision = _address(str(where))
    hub = _hub()
    try:
        for name in (CONFIG_NAME, TENSORS_NAME):
            file = hub.hf_hub_download(repo, name, revision=revision, library_name="e3sparse")
    except hub.errors.EntryNotFoundError as error:
        if isinstance(error, FileNotFoundError):  # of the local cache: there is no network
            raise _unreachable(where, error) from error
        raise AdapterFileError(
            f"{where} holds no adapter: it has no {name}. Give the address of a folder that "
            "save_pretrained(push_to_hub=…) has uploaded."
        ) from error
    except Exception as error:  # the hub's, and those of whatever it fetches by
        raise _unreachable(where, error) from error
    return Path(file).parent


def upload(folder: Path, address: str) -> None:
    """Upload an adapter folder, with its model card; the repository is made if there is none.

    Parameters
    ----------
    folder
        An adapter folder.
    address
        `"org/name"`, with or without `hf://` before it.

    Raises
    ------
    AdapterFileError
        If the hub does not take it.
    ConfigError
        If `huggingface_hub` is not installed, or the address is none.
    """
    repo, revision = _address(address if address.startswith("hf:") else f"hf://{address}")
    hub = _hub()
    try:
        hub.create_repo(repo, exist_ok=True)
        hub.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            allow_patterns=[CONFIG_NAME, TENSORS_NAME, "README.md"],
            commit_message="Upload an adapter of e3sparse",
        )
    except Exception as error:  # as above
        raise AdapterFileError(
            f"{folder} could not be uploaded to '{repo}' ({_first_line(error)}). This needs a "
            "network, and a token that may write there (hf auth login). The folder itself is whole."
        ) from error


def _address(text: str) -> tuple[str, str | None]:
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"'{text}' is no address of an adapter: give hf://ORGANISATION/NAME, or "
            "hf://ORGANISATION/NAME@REVISION."
        )
    return found["repo"], found["revision"]


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            "An address that begins with hf:// needs the package huggingface_hub: "
            "pip install 'e3sparse[hub]'."
        ) from error
    return huggingface_hub


def _unreachable(where: str | Path, error: Exception) -> AdapterFileError:
    return AdapterFileError(
        f"{where} could not be fetched ({_first_line(error)}). Is the name right, and is there a "
        "network? Otherwise fetch the folder elsewhere and give its path."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
