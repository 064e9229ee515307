"""Files that are not on this machine: what is at an address, and asking for it again where a request fails."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec

from understudy.errors import DataError, MissingDependency

Result = TypeVar("Result")

PAUSES = (1.0, 4.0, 15.0)  # seconds before a failed request is made again, and again
VERSIONS = (
    "sha256", "blob_id", "ETag", "etag", "md5Hash", "content_md5", "mtime", "last_modified", "LastModified", "created"
)  # fmt: skip
"""What file systems call a number that changes with a file's content, the most certain first."""

PACKAGES = {
    "hf": "huggingface_hub", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko",
}  # fmt: skip
"""What to install for a protocol."""


@dataclass(frozen=True)
class Shard:
    """One parquet file somewhere else, of so many bytes."""

    path: str  # as its file system knows it
    name: str  # below what was asked for
    size: int
    version: str  # changes with its content, as far as the file system can tell


class NoParquet(DataError):
    """An address under which there are other files."""


def shards_below(url: str) -> list[Shard]:
    """The parquet files at an address, by name; hidden ones left out.

    Raises:
        DataError: nothing there, or no network.
        NoParquet: other files only.
    """
    system, path = file_system(url)

    def listing() -> tuple[str, list[dict[str, Any]]]:
        if "*" in path or "[" in path:
            return os.path.dirname(re.split(r"[*[]", path)[0]), list(system.glob(path, detail=True).values())
        at = system.info(path)
        if at["type"] == "directory":
            return str(at["name"]), list(system.find(path, detail=True).values())
        return os.path.dirname(at["name"]), [at]

    base, infos = patiently(url, listing)
    infos = [info for info in infos if info["type"] == "file"]
    if not infos:
        raise DataError(f"There is nothing at {url}. Check the address.")
    files = [info for info in infos if info["name"].lower().endswith(".parquet")] or (infos if len(infos) == 1 else [])
    shards = sorted((_shard(info, base) for info in files), key=lambda shard: shard.path)
    shards = [shard for shard in shards if "/." not in f"/{shard.name}"]
    if not shards:
        endings = Counter(os.path.splitext(info["name"])[1] or "(none)" for info in infos)
        counts = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(4))
        raise NoParquet(f"{url} holds no parquet files ({counts}), and what is not on this machine is read from those.")
    return shards


def _shard(info: dict[str, Any], base: str) -> Shard:
    """A file from what its file system says of it; by its own name where it does not lie below the base."""
    path, base = str(info["name"]), base.rstrip("/") + "/"  # some file systems know a folder by several names
    name = path.removeprefix(base) if path.startswith(base) else path.rpartition("/")[2]
    metadata = {**info, **(info.get("lfs") or {})}
    version = next((str(metadata[name]) for name in VERSIONS if metadata.get(name) is not None), "")
    return Shard(path, name, int(info["size"] or 0), version)


def file_system(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path there.

    Raises:
        MissingDependency: the package that speaks the protocol is not installed.
        DataError: an unknown protocol.
    """
    try:
        system, path = fsspec.url_to_fs(url)
        return system, str(path)
    except ImportError as error:
        protocol = url.partition("://")[0]
        package = PACKAGES.get(protocol)
        how = f"pip install {package}" if package else str(error)
        raise MissingDependency(f"{protocol}:// needs a package that is not installed: {how}.") from None
    except ValueError as error:
        raise DataError(f"{url} is not an address that can be read ({error}).") from None


def patiently(what: str, request: Callable[[], Result]) -> Result:
    """The answer to a request, which is made again after a pause where it fails.

    Raises:
        DataError: it is refused, or fails to the last.
    """
    for pause in (*PAUSES, None):
        try:
            return request()
        except FileNotFoundError:
            raise DataError(
                f"{what} does not exist, or not for you. Check the address, and that you are logged in."
            ) from None
        except PermissionError as error:
            raise _forbidden(what, error) from None
        except DataError:
            raise
        # Each file system has errors of its own, and those of its network library.
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
                raise _forbidden(what, error) from None
            if pause is None:
                raise DataError(
                    f"{what} cannot be reached: {len(PAUSES) + 1} attempts failed, the last with "
                    f"'{type(error).__name__}: {error}'. Check the network, then run the same command again: what is "
                    "done is kept. Without a network, fetch the files elsewhere and give the folder they are in."
                ) from None
            time.sleep(pause)
    raise AssertionError


def _forbidden(what: str, error: Exception) -> DataError:
    return DataError(f"{what} may not be read ({error}). Log in with an account that may, or ask its owners.")
