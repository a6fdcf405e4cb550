"""Files on the Hugging Face hub: a few small ones of one repository, written and read.

What talks to the hub is a client with the methods of `huggingface_hub.HfApi`; another may be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probing.errors import ConfigError, DataError


def upload(
    repo: str,
    files: Mapping[str, bytes],
    message: str,
    *,
    private: bool = False,
    client: Any = None,
) -> str:
    """Write files to a model repository, which is made where it is not there; its address.

    All files are one commit: none is there without the others.

    Args:
        repo: OWNER/NAME.
        files: content by name.
        message: of the commit.
        private: whether a new repository is.
        client: instead of the hub's own.

    Raises:
        ConfigError: no such name, or the hub refuses: no token, no right to write, no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    client = client or HfApi()
    if repo.count("/") != 1:
        raise ConfigError(f"{repo!r}: a repository on the hub is OWNER/NAME")
    try:
        address = client.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        client.create_commit(repo, operations, commit_message=message)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{repo}: the hub does not take it ({str(error).splitlines()[0]}); `hf auth login`, "
            "with a token that may write there"
        ) from error
    return str(address)


def download(repo: str, name: str, revision: str | None = None, *, client: Any = None) -> Path:
    """A file of a model repository, fetched into the hub's own cache; where it lies.

    Args:
        repo: OWNER/NAME.
        name: of the file.
        revision: branch, tag or commit; None: the newest.
        client: instead of the hub's own.

    Raises:
        DataError: no such repository, revision or file, or no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    client = client or HfApi()
    try:
        return Path(client.hf_hub_download(repo, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        at = f" at {revision}" if revision else ""
        raise DataError(
            f"{repo}{at}: cannot fetch {name} from the hub ({str(error).splitlines()[0]})"
        ) from error
