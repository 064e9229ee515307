"""Students on the Hugging Face hub: their folder, fetched once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from understudy.errors import ModelError, first_line

FILES = ["student.json", "student.safetensors"]


def is_repository(name: str) -> bool:
    """Whether a name that is no path here may be ORG/NAME or ORG/NAME@REVISION of the hub."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None and not name.startswith((".", "/"))


def fetch(name: str, **options: Any) -> Path:
    """The folder of a student on the hub; what was fetched before is not asked for again.

    Args:
        name: ORG/NAME, or ORG/NAME@REVISION.
        **options: further arguments of `huggingface_hub.snapshot_download`.

    Raises:
        ModelError: no such repository, one that needs a login, one without a student, or no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    repository, _, revision = name.partition("@")
    arguments: dict[str, Any] = {"revision": revision or None, "allow_patterns": FILES, **options}
    try:
        folder = Path(snapshot_download(repository, **arguments))
    except GatedRepoError:
        raise ModelError(
            f"{repository} is gated: accept its license on its page of the hub, then log in (`hf auth login`)."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The hub has no {repository}, or it is private: check the name, or log in (`hf auth login`)."
        ) from None
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repository} is not in the cache and the hub cannot be reached ({first_line(error)}). Give a folder."
        ) from None
    except Exception as error:  # of the library beneath the client, which has changed more than once
        raise ModelError(f"{repository} cannot be fetched from the hub ({first_line(error)}). Give a folder.") from None
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise ModelError(f"{repository} holds no student of understudy: it has no {' and no '.join(missing)}.")
    return folder
