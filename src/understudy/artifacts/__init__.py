"""Artifacts: what is written to disk, in which order, and how a later run knows that it is complete. No torch.

Arrays are written first, the manifest last, each by atomic rename: a manifest that exists means the folder is complete.

    store/<fingerprint>/manifest.json  embeddings.npy (N, D)  listing.parquet  graph.npy (N, K) int32
    runs/<id>/config.toml  metrics.jsonl  checkpoint/  student.safetensors  student.json  evaluation.json  report.html
"""

from understudy.artifacts.files import atomic, read_json, room_on_disk, sweep, write_json, write_text
from understudy.artifacts.fingerprints import file_fingerprint, fingerprint
from understudy.artifacts.regular import check_regular, open_regular, read_regular
from understudy.artifacts.run import Run
from understudy.artifacts.store import FORMAT, Store, StoreKey
from understudy.artifacts.writers import ALONE, Writers, blocks_of, lock

__all__ = [
    "ALONE", "FORMAT", "Run", "Store", "StoreKey", "Writers", "atomic", "blocks_of", "check_regular",
    "file_fingerprint", "fingerprint", "lock", "open_regular", "read_json", "read_regular", "room_on_disk", "sweep",
    "write_json", "write_text",
]  # fmt: skip
