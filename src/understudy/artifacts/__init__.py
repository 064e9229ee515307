"""Artifacts: what is written to disk, in which order, and how a later run knows that it is complete. No torch.

Arrays are written first, the manifest last, each by atomic rename: a manifest that exists means the folder is complete.

    store/<fingerprint>/manifest.json  embeddings.npy (N, D)  listing.parquet  graph.npy (N, K) int32
    runs/<id>/config.toml  metrics.jsonl  checkpoint/  student.safetensors  student.json  evaluation.json  report.html
"""

from understudy.artifacts.checksums import VERIFIED_AT_OPEN, Checksums
from understudy.artifacts.files import atomic, read_json, read_table, room_on_disk, sweep, write_json, write_text
from understudy.artifacts.fingerprints import file_fingerprint, fingerprint
from understudy.artifacts.regular import check_regular, open_regular, read_regular
from understudy.artifacts.run import Run, sealed_row
from understudy.artifacts.seals import checksum, damaged, is_whole, require_whole, verdict_on
from understudy.artifacts.store import FORMAT, Store, StoreKey
from understudy.artifacts.writers import ALONE, Writers, blocks_of, lock

__all__ = [
    "ALONE", "FORMAT", "VERIFIED_AT_OPEN", "Checksums", "Run", "Store", "StoreKey", "Writers", "atomic", "blocks_of",
    "check_regular", "checksum", "damaged", "file_fingerprint", "fingerprint", "is_whole", "lock", "open_regular",
    "read_json", "read_regular", "read_table", "require_whole", "room_on_disk", "sealed_row", "sweep", "verdict_on",
    "write_json", "write_text",
]  # fmt: skip
