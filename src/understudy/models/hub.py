"""What is fetched from the Hugging Face hub, once: models, and students; out of reach is said at once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from understudy.errors import ModelError, first_line

FILES = ["student.json", "student.safetensors"]

TRIALS = 3  # times that a hub is asked, a second apart, before it counts as out of reach


def is_repository(name: str) -> bool:
    """Whether a name that is no path here may be ORG/NAME or ORG/NAME@REVISION of the hub."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None and not name.startswith((".", "/"))


@contextmanager
def in_words(repository: str, revision: str | None) -> Iterator[None]:
    """A block whose errors, which are those of the hub's client, become sentences with the next step.

    Raises:
        ModelError: no such repository or revision, one that needs a login, or no network.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except ModelError:
        raise
    except GatedRepoError:
        raise ModelError(
            f"{repository} is gated: accept its license on its page of the hub, then log in (`hf auth login`)."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{repository} has no revision '{revision}': its page of the hub lists them.") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The hub has no {repository}, or it is private: check the name, or log in (`hf auth login`)."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(
            f"{repository} is not in the cache and the hub cannot be reached ({first_line(error)}). Give a folder."
        ) from None
    except Exception as error:  # of the library beneath the client, which has changed more than once
        raise ModelError(f"{repository} cannot be fetched from the hub ({first_line(error)}). Give a folder.") from None


def fetch(name: str, **options: Any) -> Path:
    """The folder of a student on the hub; what was fetched before is not asked for again.

    Args:
        name: ORG/NAME, or ORG/NAME@REVISION.
        **options: further arguments of `huggingface_hub.snapshot_download`.

    Raises:
        ModelError: no such repository, one that needs a login, one without a student, or no network.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    arguments: dict[str, Any] = {"revision": revision or None, "allow_patterns": FILES, **options}
    with in_words(repository, revision):
        folder = Path(snapshot_download(repository, **arguments))
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise ModelError(f"{repository} holds no student of understudy: it has no {' and no '.join(missing)}.")
    return folder


def snapshot(
    repository: str, revision: str | None, choose: Callable[[Sequence[str]], list[str]], whole: Callable[[Path], bool],
    anchors: Sequence[str] = ("config.json",),
) -> Path:  # fmt: skip
    """The folder, named by its commit, of the files of a repository that are wanted.

    Args:
        repository: `ORG/NAME`.
        revision: branch, tag or commit; "main" unless given.
        choose: the names of all files of the repository -> those that are wanted.
        whole: whether a folder of the cache holds all that is wanted; it is then taken, and nobody is asked.
        anchors: files by which such a folder is found.

    Raises:
        ModelError: it is not there, not for everybody, or cannot be reached; the sentence names the next step.
    """
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    with in_words(repository, revision):
        for name in anchors:
            cached = try_to_load_from_cache(repository, name, revision=revision)
            if isinstance(cached, str) and whole(Path(cached).parent):
                return Path(cached).parent
        knock(repository)
        files = HfApi().model_info(repository, revision=revision).siblings or []
        wanted = choose([file.rfilename for file in files])
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))


def knock(repository: str) -> None:
    """Ask a hub whether it is there; returns if it answers anything, or is slow to.

    The hub's own client takes 23 seconds for each of two file names to give up on a name that cannot be resolved, which
    none of its settings shortens. So it is asked here first: a few refusals within seconds are no network, while
    whatever answers, or is slow to, is left to the client and its patience.

    Raises:
        Exception: of the library beneath the client: nobody is there.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for trial in range(TRIALS):
        try:
            get_hf_file_metadata(hf_hub_url(repository, "config.json"))
            return
        except (HfHubHTTPError, OfflineModeIsEnabled):
            return  # an answer, or one that the client gives at once
        except Exception as error:  # of the library beneath the client, which has changed more than once
            if "Timeout" in type(error).__name__:
                return
            if trial == TRIALS - 1:
                raise
            time.sleep(1)
