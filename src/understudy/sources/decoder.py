"""A process beside this one that unpacks files whose cost nobody can tell beforehand, and is ended with them.

PIL's decoders are C and do not return to Python before they are done: nothing in the same process can stop one, and
where one crashes it takes the process along. So the work of `serve` happens in a child, which the kernel ends after so
many seconds of its processor, gives only so much memory, and which may crash. It costs copying the file there and the
pixels back, and 0.2 s for the first such file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from understudy.errors import DataError, UnreadableImage
from understudy.sources.limits import ImageLimits, variable

COMMAND = "from understudy.sources.decode import serve_decoder; serve_decoder()"
REQUEST = struct.Struct("<QQQd")  # bytes of the file, and the limits
REPLY = struct.Struct("<BII")  # 0 and the sides of the RGB pixels that follow; or 1, the bytes of a sentence, and 0
READY = b"ready"
BAND = 2**20  # pixels at a time
OUT_OF_TIME = (signal.SIGPROF, signal.SIGXCPU)
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


class Decoder:
    """The child of this process, started with the first file; a forked process gets one of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = self._pid = 0
        self._requests: BinaryIO
        self._replies: BinaryIO

    def decode(self, data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
        """The file as an RGB image.

        Raises:
            UnreadableImage: it cannot be decoded, or not within the limits; the sentence lacks its subject.
            DataError: no child can be started.
        """
        with self._lock:
            for _ in range(2):  # a child that somebody else ended says nothing about the file
                if self._owner != os.getpid():
                    self._start()
                with contextlib.suppress(BrokenPipeError, EOFError):
                    self._requests.write(REQUEST.pack(len(data), limits.pixels, limits.side, limits.seconds))
                    self._requests.write(data)
                    self._requests.flush()
                    return self._received()
                status = self._stop()
                if -status in OUT_OF_TIME:
                    raise UnreadableImage(
                        f"takes more than {limits.seconds:g} s of a processor to unpack ({variable('seconds')})."
                    )
                if -status in CRASHES:
                    raise UnreadableImage(f"is damaged: unpacking it crashed ({signal.Signals(-status).name}).")
            raise UnreadableImage(
                f"cannot be unpacked: the process that did it was ended twice (status {status}), maybe for its memory."
            )

    def _start(self) -> None:
        """Start a child of this process. It imports what this one does, and nothing from the working directory."""
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *(path for path in sys.path if path and path != root)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
        theirs, ours = os.pipe()
        mine, answers = os.pipe()
        null = os.open(os.devnull, os.O_WRONLY)  # libraries complain of every second file on standard error
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 0), (os.POSIX_SPAWN_DUP2, answers, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
        try:
            command = [sys.executable, "-P", "-c", COMMAND]
            self._pid = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
        except OSError as error:
            raise DataError(f"No process can be started to decode images ({error.strerror}).") from None
        finally:
            for end in (theirs, answers, null):
                os.close(end)
        self._owner, self._requests, self._replies = os.getpid(), os.fdopen(ours, "wb"), os.fdopen(mine, "rb")
        if self._replies.read(len(READY)) != READY:
            status = self._stop()
            raise DataError(f"The process that decodes images does not start: {sys.executable} ended with {status}.")

    def _stop(self) -> int:
        """How the child ended, as `os.waitstatus_to_exitcode` says it."""
        self._owner = 0
        with contextlib.suppress(OSError):
            self._requests.close()
        self._replies.close()
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _received(self) -> Image.Image:
        """What the child answers."""
        failed, width, height = REPLY.unpack(_exactly(self._replies, REPLY.size))
        if failed:
            raise UnreadableImage(_exactly(self._replies, width).decode())
        image = Image.new("RGB", (width, height))
        for top, rows in _bands(width, height):
            pixels = _exactly(self._replies, 3 * width * rows)
            image.paste(Image.frombuffer("RGB", (width, rows), pixels, "raw", "RGB", 0, 1), (0, top))
        return image


def serve(decode: Callable[[bytes, ImageLimits], Image.Image]) -> None:
    """Decode file after file from standard input until it is closed: the child's side.

    Args:
        decode: raises `UnreadableImage`.
    """
    import resource

    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for those it works for; it ends with its input
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = _address_space()
    replies.write(READY)
    replies.flush()
    while header := requests.read(REQUEST.size):
        size, pixels, side, seconds = REQUEST.unpack(header)
        limits, data = ImageLimits(pixels, side, seconds), _exactly(requests, size)
        try:
            with _bounded(used + size + limits.nbytes, seconds):
                image = decode(data, limits)
        except UnreadableImage as error:
            text = str(error).encode()
            replies.write(REPLY.pack(1, len(text), 0) + text)
        else:
            replies.write(REPLY.pack(0, *image.size))
            for top, rows in _bands(*image.size):
                replies.write(image.crop((0, top, image.width, top + rows)).tobytes())
        replies.flush()
        image = data = None  # type: ignore[assignment]  # not beside the next one


@contextlib.contextmanager
def _bounded(addresses: int, seconds: float) -> Iterator[None]:
    """At most so many bytes of addresses, and seconds of the processor until the kernel ends this process."""
    import resource

    def allow(size: int) -> None:
        with contextlib.suppress(ValueError, OSError):  # a system without such a limit
            resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))

    signal.setitimer(signal.ITIMER_PROF, seconds)
    allow(addresses)
    try:
        yield
    finally:
        allow(resource.RLIM_INFINITY)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _address_space() -> int:
    """Bytes of addresses that this process has taken before it decodes anything."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 2**30


def _bands(width: int, height: int) -> list[tuple[int, int]]:
    """First row and number of rows of the pieces in which an image is sent."""
    rows = max(1, BAND // width)
    return [(top, min(rows, height - top)) for top in range(0, height, rows)]


def _exactly(file: BinaryIO, size: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: the other side is gone.
    """
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data
