"""Upload of an export to a repository of the Hugging Face Hub."""

from __future__ import annotations

import re

from huggingface_hub import HfApi, get_token

from pipeline import storage
from pipeline.errors import ConfigError, StorageError
from pipeline.inference.export_record import FILE_NAMES, read_record
from pipeline.text import shorten

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def check_push(out: str, repository: str) -> None:
    """Check the name of the repository and the login, before anything is written.

    Raises:
        ConfigError: the name is none, nobody is logged in, or ``out`` is not a local folder.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(
            f"--push is {shorten(repository, 100)!r}; give USER/REPOSITORY, with letters, digits, "
            "'-', '_' and '.'"
        )
    if not storage.is_local(out):
        raise ConfigError(
            f"--push uploads a local folder, and --out is {storage.redact(out)}; give a folder"
        )
    if get_token() is None:
        raise ConfigError(
            "--push needs a login to the Hugging Face Hub; run `hf auth login`, or set HF_TOKEN to "
            "a token with write access"
        )


def push(out: str, repository: str, *, private: bool) -> str:
    """Upload the files of the export in the folder ``out``; returns the address of the repository.

    A repository that exists gets one commit more. Other files in ``out`` are not uploaded.

    Raises:
        StorageError: the hub cannot be reached, or refuses.
    """
    record, api = read_record(out), HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=storage.local_path(out),
            allow_patterns=list(FILE_NAMES),
            commit_message=f"Export {record.name} after task {record.stage}",
        )
    except Exception as error:  # of the network, of its proxy, or of the hub
        # The first line alone: others hold headers of the request.
        line = shorten(storage.scrub(str(error).strip().partition("\n")[0]))
        raise StorageError(
            f"cannot upload to {repository}: {type(error).__name__} ({line}); check the name, the "
            f"rights of your token and the network, then repeat --push with --out {out}"
        ) from None
    return str(address)
