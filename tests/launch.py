"""Python processes that start in milliseconds: forked off a server that has imported torch and the rest already.

    launch.run([sys.executable, "-m", "understudy", "train", ...], cwd=folder, capture_output=True, text=True)
    launch.Popen([sys.executable, "-c", script])
    launch.run(launch.torchrun("script.py"))

Both are those of `subprocess`, for commands that begin with this interpreter; so is what such a process starts in its
turn (the workers of torchrun, the runs of a comparison), and a shell script is given `launch.program(folder)` as its
Python. What is forked is a process of its own with its own environment, folder, signals and exit status. Not for what
must be seen from a cold start (which modules are imported, memory at its peak, who is whose parent): use `subprocess`
there.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import inspect
import itertools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

ADDRESS = "UNDERSTUDY_TEST_SERVER"
"""Environment variable with the server's socket, for processes that start processes."""

PRELOADED = (
    "numpy", "torch", "torchvision", "timm", "sklearn.datasets", "sklearn.linear_model", "faiss", "onnxruntime",
    "pyarrow.parquet", "pyarrow.compute", "PIL.Image", "safetensors.torch", "rich.live", "rich.table", "scipy.optimize",
    "torch.utils.data", "torch.distributed.launcher.api", "torch.distributed.elastic.rendezvous.registry",
)  # fmt: skip

real_popen = subprocess.Popen


class Popen(real_popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, whose child is forked by the server where the command is this interpreter's."""

    def _execute_child(self, *args: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*args).arguments  # type: ignore[misc]
        command = given["args"]
        words = [os.fsdecode(word) for word in command] if not isinstance(command, str | bytes | os.PathLike) else []
        self.reply: socket.socket | None = None
        if not words or words[0] != sys.executable or given["preexec_fn"] or given["pass_fds"]:
            super()._execute_child(*args)  # type: ignore[misc]
            return
        env = os.environ if given["env"] is None else given["env"]
        request = {
            "argv": list(itertools.dropwhile(lambda word: word.startswith(("-u", "-X")), words[1:])),
            "cwd": os.fsdecode(given["cwd"] or os.getcwd()),
            "env": {os.fsdecode(key): os.fsdecode(value) for key, value in env.items()},
            "session": bool(given["start_new_session"]),
        }
        standard = [
            number if given[end] == -1 else given[end] for number, end in enumerate(("p2cread", "c2pwrite", "errwrite"))
        ]
        self.reply = socket.socket(socket.AF_UNIX)
        self.reply.connect(address())
        socket.send_fds(self.reply, [b"fds"], standard)
        self.reply.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(_line(self.reply))
        self._child_created = True
        self._close_pipe_fds(*(given[end] for end in (
            "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"
        )))  # type: ignore[attr-defined]  # fmt: skip

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self.reply is None:
            return super()._try_wait(flags)  # type: ignore[misc, no-any-return]
        if flags & os.WNOHANG and not select.select([self.reply], [], [], 0)[0]:
            return 0, 0
        status = _line(self.reply)
        self.reply.close()
        return self.pid, int(status) if status else signal.SIGKILL

    def _internal_poll(self, _deadstate: int | None = None, **more: Any) -> int | None:
        if self.reply is None:
            return super()._internal_poll(_deadstate, **more)  # type: ignore[misc, no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def run(command: list[Any], *, timeout: float | None = None, check: bool = False, **options: Any) -> Any:
    """`subprocess.run` with such a process; `capture_output`, `text`, `cwd`, `env`, `stdout`, `stderr`, `input`."""
    data = options.pop("input", None)
    if data is not None:
        options["stdin"] = subprocess.PIPE
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(data, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def torchrun(*arguments: str) -> list[str]:
    """The command for two processes that find each other at a free port, by `--standalone` (a second more) if given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = ["--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1])]
    more = [] if "--standalone" in arguments else place
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *more, *arguments]


def program(folder: Path) -> Path:
    """An executable in place of the interpreter, for what is no Python and starts some."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{ADDRESS}="{address()}" exec "{sys.executable}" "{__file__}" forked "$@"\n')
    path.chmod(0o755)
    return path


def address() -> str:
    """The socket of this session's server, started at the first call."""
    if ADDRESS not in os.environ:
        folder = tempfile.mkdtemp(prefix="launch-")
        path = f"{folder}/socket"
        alive, hold = os.pipe()  # closed with this process, however it ends
        server = real_popen(
            [sys.executable, __file__, path], stdin=alive, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(alive)
        assert server.stdout is not None
        server.stdout.readline()

        def close() -> None:
            os.close(hold)
            server.wait()
            with contextlib.suppress(OSError):
                os.unlink(path)
                os.rmdir(folder)

        atexit.register(close)
        os.environ[ADDRESS] = path
    return os.environ[ADDRESS]


def serve(path: str) -> None:
    """Fork a process for each connection and tell it how that one ended, until standard input is closed."""
    import importlib

    os.environ[ADDRESS] = path
    subprocess.Popen = Popen  # type: ignore[misc]  # before a library takes it by its name, as torchrun does
    for name in PRELOADED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    replies: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, 0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                reply = replies.pop(ended[0])
                with contextlib.suppress(OSError):
                    reply.sendall(b"%d\n" % ended[1])
                reply.close()
        if 0 in ready:
            for pid in replies:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)  # the libraries' own ends take longer than all that was done here
        if listener in ready:
            reply, _ = listener.accept()
            _, standard, _, _ = socket.recv_fds(reply, 3, 3)
            request = json.loads(_line(reply))
            pid = os.fork()
            if not pid:
                for held in (listener, *replies.values()):
                    held.close()
                signal.set_wakeup_fd(-1)
                os.close(woken)
                os.close(wake)
                _become(request, standard, reply)
            for number in standard:
                os.close(number)
            replies[pid] = reply


def _line(connection: socket.socket) -> str:
    """A line of a socket and nothing after it, or what there is of it when the other side is gone."""
    received = b""
    while not received.endswith(b"\n") and (part := connection.recv(1)):
        received += part
    return received.decode().strip()


def _become(request: dict[str, Any], standard: list[int], reply: socket.socket) -> None:
    """Turn a fork into the process that was asked for, and end it as an interpreter ends."""
    for number, held in enumerate(standard):
        os.dup2(held, number)
    for held in standard:
        if held > 2:
            os.close(held)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing outlives the server
    if request["session"]:
        os.setsid()
    reply.sendall(b"%d\n" % os.getpid())  # not before it has its session, which the caller may want to kill
    reply.close()
    where = os.environ[ADDRESS]
    os.environ.clear()
    os.environ.update(request["env"] | {ADDRESS: where})
    os.chdir(request["cwd"])
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    status = 1
    try:
        _execute(request["argv"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201
    except KeyboardInterrupt:
        traceback.print_exc()
        status = 130
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 0xFF)


def _execute(argv: list[str]) -> None:
    """`-c CODE`, `-` for standard input, `-m MODULE` or a file, with its arguments, as the interpreter does it."""
    path = os.environ.get("PYTHONPATH", "")
    sys.path[:0] = [entry for entry in path.split(os.pathsep) if entry and entry not in sys.path]
    if argv[0] in ("-c", "-"):
        code = argv.pop(1) if argv[0] == "-c" else sys.stdin.read()
        sys.argv = argv
        sys.path[0:1] = ["", sys.path[0]]
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(code, "<string>", "exec"), vars(main))
    elif argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        sys.path.insert(0, str(Path(argv[0]).resolve().parent))
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "forked":
        sys.exit(run([sys.executable, *sys.argv[2:]]).returncode)
    serve(sys.argv[1])
