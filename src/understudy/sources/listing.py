"""Which images a result is of: the rows of a source written down, and brought back in their order."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from understudy.artifacts import atomic
from understudy.errors import DataError
from understudy.sources.source import Source, open_source


def write_listing(path: str | os.PathLike[str], source: Source) -> None:
    """Write which image stands in which row, columns id and name; labels stay where they are."""
    table = pa.table({"id": pa.array(source.ids), "name": source.names})
    table = table.replace_schema_metadata({"spec": source.spec, "fingerprint": source.fingerprint})
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_listing(path: str | os.PathLike[str], source: Source | str | os.PathLike[str]) -> Source:
    """The images of a listing, in its order.

    Args:
        path: what `write_listing` wrote.
        source: the source that the listing was taken from, or its spec.

    Raises:
        DataError: the listing cannot be read, or the source no longer has these images under these numbers.
    """
    if not isinstance(source, Source):
        source = open_source(source)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"The listing {path} cannot be read ({error}). Embed the images again.") from None
    ids = table.column("id").to_numpy()
    order = np.argsort(source.ids, kind="stable")
    place = np.searchsorted(source.ids, ids, sorter=order)
    present = place < len(order)
    listed = source.subset(order[np.where(present, place, 0)])
    if not (present.all() and (listed.ids == ids).all() and _same_names(listed.names, table.column("name"))):
        raise DataError(
            f"{path} lists {len(ids)} images that {source.spec} no longer has under the same names and numbers (it has "
            f"{len(source)}). Embed the images again."
        )
    return listed


def _same_names(names: pa.Array, column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.equal(names, column.combine_chunks().cast(names.type))).as_py())
