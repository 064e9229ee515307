"""How long a folder of very many images takes to list.

    python benchmarks/listing.py                     # 200,000 files
    python benchmarks/listing.py --files 1000000

Makes empty files in class folders of a temporary directory and opens it as training does: one scan, with the size and
the time of every file for the fingerprint. No image is opened, so what the files hold does not matter.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from pathlib import Path

from understudy.data.sources import open_source


def main() -> None:
    """Make the files, list them twice, print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000, help="how many files")
    parser.add_argument("--folders", type=int, default=1000, help="in how many class folders")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(min(options.folders, options.files)):
            (root / f"class_{number:04d}").mkdir()
        for number in range(options.files):
            (root / f"class_{number % options.folders:04d}" / f"image_{number:08d}.jpg").touch()
        print(f"{options.files:,} files in {options.folders:,} folders")
        for turn in ("first", "second"):
            start = time.perf_counter()
            source = open_source(root)
            print(f"{turn} listing: {time.perf_counter() - start:.2f} s")
            assert len(source) == options.files
        start = time.perf_counter()
        assert source.labels is not None
        print(f"labels, on request: {time.perf_counter() - start:.2f} s")
        print(f"held by each worker: {len(pickle.dumps(source)) / options.files:.0f} bytes an image")


if __name__ == "__main__":
    main()
