"""Files that are not what they should be: 10,000 mutants of real files of every kind (`fuzz_files.py`).

    python benchmarks/fuzz.py [--count 10000] [--seed 0] [--kinds jpg tar ...] [--keep FOLDER]

A mutant is a whole file of one kind with bytes flipped, cut, doubled, moved, set to extremes, or taken from another
kind; the other files of its set stay whole. Each is opened as the program would open it, by a child process that is
allowed 5 s and 1 GB more than it had; one that dies or hangs is replaced. Mutant number n of a seed is always the
same.

Prints, for each kind, how many were decoded (something could be read), refused (a sentence: an `UnderstudyError`), and
faults: another exception, a signal, too slow, too large. Ends with an error if there was a fault; `--keep` writes those
files down.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch
from fuzz_files import Kind, kinds

from understudy.errors import UnderstudyError

SECONDS, NBYTES = 5.0, 10**9
EXTREMES = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
WORDS = (b"0", b"-1", b"1e99", b"nan", b"99999999999999999999", b"\0", b"\xff", b'"', b",", b"\n", b"[" * 5000, b"../")


def mutated(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """The file with one to four things wrong."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(content) + 1)
        if draw.random() < 0.5:  # headers decide more than pixels
            place = min(place, draw.randrange(512))
        size = min(draw.choice((1, 2, 4, 8, 64, 512, 4096)), len(content))
        start = draw.randrange(len(content) + 1 - size)
        match draw.randrange(9):
            case 0 if content:
                content[place % len(content)] ^= 1 << draw.randrange(8)
            case 1:
                content[place : place + size] = draw.randbytes(size)
            case 2:
                packed = draw.choice(EXTREMES).to_bytes(8, draw.choice(("little", "big")))
                width = draw.choice((1, 2, 4, 8))
                content[place : place + width] = packed[:width] if draw.random() < 0.5 else packed[-width:]
            case 3:
                del content[place : place + size]
            case 4:
                content[place:place] = content[start : start + size] * draw.choice((1, 1, 2, 100))
            case 5:
                content[place : place + size] = content[start : start + size]
            case 6 if draw.random() < 0.3:
                del content[place:]
            case 7:
                content[place:place] = draw.choice(WORDS)
            case 8 if other:
                begin = draw.randrange(len(other))
                content[place : place + size] = other[begin : begin + size]
    return bytes(content)


def repaired(data: bytes) -> bytes:
    """The same with right checksums in the headers of a PNG or a tar, without which nothing behind them is read."""
    content = bytearray(data)
    place = 8
    while data.startswith(b"\x89PNG") and place + 12 <= len(content):
        end = place + 8 + struct.unpack(">I", content[place : place + 4])[0]
        if end + 4 > len(content):
            break
        content[end : end + 4] = struct.pack(">I", zlib.crc32(content[place + 4 : end]))
        place = end + 4
    for header in range(0, len(content) - 511, 512) if data[257:262] == b"ustar" else ():
        if content[header + 257 : header + 262] == b"ustar":
            content[header + 148 : header + 156] = b" " * 8
            content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    return bytes(content)


def mutant(number: int, seed: int, names: list[str], everything: dict[str, Kind]) -> tuple[str, dict[str, bytes]]:
    """The kind and the files of mutant `number`."""
    draw = random.Random(f"{seed} {number}")
    kind = names[number % len(names)]
    files = dict(everything[kind].files)
    first = next(iter(files))
    other = next(iter(everything[draw.choice(list(everything))].files.values()))
    files[first] = mutated(files[first], draw, other)
    if draw.random() < 0.7:
        files[first] = repaired(files[first])
    return kind, files


def outcome(kind: Kind, files: dict[str, bytes], folder: Path) -> str:
    """Open a mutant: "decoded", "refused", or the last words of a traceback."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.open(folder)
    except UnderstudyError:
        return "refused"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        own = next((frame for frame in reversed(where) if "understudy" in frame.filename), where[-1])
        place = f"{Path(own.filename).name}:{own.lineno}"
        return f"{type(error).__name__} at {place}: {str(error)[:150]!r}"
    return "decoded"


class Child:
    """A forked process that opens mutants, one for each number it is sent."""

    def __init__(self, work: Callable[[int], str]) -> None:
        theirs, self._numbers = os.pipe()
        self._answers, mine = os.pipe()
        sys.stdout.flush()
        if not (pid := os.fork()):
            os.close(self._numbers)
            os.close(self._answers)
            self._serve(theirs, mine, work)
        os.close(theirs)
        os.close(mine)
        self.pid = pid

    def _serve(self, numbers: int, answers: int, work: Callable[[int], str]) -> None:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 4 * NBYTES, resource.RLIM_INFINITY))
        while number := os.read(numbers, 8):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
            before = _resident("VmRSS")
            answer = work(struct.unpack("<q", number)[0])
            if (more := _resident("VmHWM") - before) > NBYTES:
                answer = f"{more / 1e9:.1f} GB of memory"
            os.write(answers, answer.encode()[:4000] or b" ")
        os._exit(0)

    def ask(self, number: int) -> tuple[str, bool]:
        """The outcome of a mutant, and whether the child is still there."""
        os.write(self._numbers, struct.pack("<q", number))
        if not select.select([self._answers], [], [], SECONDS)[0]:
            os.kill(self.pid, signal.SIGKILL)
            self.close()
            return f"more than {SECONDS:g} s", False
        if answer := os.read(self._answers, 4096):
            return answer.decode(), True
        return f"ended with {self.close()}", False

    def close(self) -> int:
        """How it ended."""
        os.close(self._numbers)
        os.close(self._answers)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _resident(field: str) -> int:
    """Bytes of memory, from the kernel's table of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def run(count: int, seed: int, names: list[str] | None = None, keep: Path | None = None) -> dict[str, Counter[str]]:
    """Open so many mutants; the outcomes of each kind: "decoded", "refused" and the sentences of faults."""
    everything = kinds()
    names = names or list(everything)
    results: dict[str, Counter[str]] = {name: Counter() for name in names}
    with tempfile.TemporaryDirectory() as folder:

        def work(number: int) -> str:
            kind, files = mutant(number, seed, names, everything)
            return outcome(everything[kind], files, Path(folder) / "files")

        child, alive = Child(work), True
        for number in range(count):
            if not alive:
                child = Child(work)
            answer, alive = child.ask(number)
            if answer.startswith("more than"):  # the machine may have been busy: once more
                child = Child(work)
                answer, alive = child.ask(number)
            kind, files = mutant(number, seed, names, everything)
            results[kind][answer] += 1
            if answer not in ("decoded", "refused"):
                print(f"fault: {kind}, mutant {number} of seed {seed}: {answer}", flush=True)
                for name, content in files.items() if keep is not None else ():
                    place = (keep or Path()) / f"{kind}-{number}" / name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content)
        if alive:
            child.close()
    return results


def main() -> None:
    """Mutate, open, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="only these; all unless given")
    parser.add_argument("--keep", type=Path, help="folder for the files that were faults")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    start = time.monotonic()
    results = run(options.count, options.seed, options.kinds, options.keep)
    print("| kind | decoded | refused | faults |\n|---|---|---|---|")
    total: Counter[str] = Counter()
    for name, counts in results.items():
        row = {"decoded": counts["decoded"], "refused": counts["refused"]}
        row["faults"] = sum(counts.values()) - sum(row.values())
        total.update(row)
        print(f"| {name} | {' | '.join(map(str, row.values()))} |")
    print(f"| all | {total['decoded']} | {total['refused']} | {total['faults']} |")
    print(
        f"{options.count} mutants of seed {options.seed} in {time.monotonic() - start:.0f} s: {total['faults']} faults"
    )
    sys.exit(bool(total["faults"]))


if __name__ == "__main__":
    main()
