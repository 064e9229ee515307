"""Processes forked off the tests' server are like those of `subprocess`: streams, status, folder, signals, children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import launch

pytestmark = pytest.mark.slow


def test_streams_status_folder_and_environment(tmp_path: Path):
    code = (
        "import os, sys; print(os.getcwd(), os.environ['MARK'], *sys.argv); print('x' * 200_000, file=sys.stderr); "
        "sys.exit(3)"
    )
    done = launch.run(
        [sys.executable, "-c", code, "a"],
        cwd=tmp_path,
        env={**os.environ, "MARK": "here"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (3, f"{tmp_path} here -c a\n")
    assert len(done.stderr) == 200_001


def test_an_error_is_a_traceback_and_status_1():
    done = launch.run([sys.executable, "-c", "raise ValueError('no')"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: no")
    with pytest.raises(subprocess.CalledProcessError):
        launch.run([sys.executable, "-c", "raise SystemExit(2)"], check=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_ends_it(number: signal.Signals):
    process = launch.Popen(
        [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"], stdout=subprocess.PIPE
    )
    with process:
        process.stdout.readline()
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(10) == -number


def test_what_it_starts_is_forked_too_and_other_programs_run():
    code = (
        "import subprocess, sys; subprocess.run(['echo', 'hi']); "
        "subprocess.run([sys.executable, '-c', 'import sys; print(\"torch\" in sys.modules)'])"
    )
    assert launch.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["hi", "True"]


def test_too_long_is_stopped():
    with pytest.raises(subprocess.TimeoutExpired):
        launch.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.3)


def test_a_session_of_its_own_is_there_when_its_number_is():
    with launch.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as process:
        assert os.getpgid(process.pid) == process.pid
        process.kill()


def test_a_script_starts_forks_by_a_program(tmp_path: Path):
    script = f'echo "import sys; print(sys.argv, \\"torch\\" in sys.modules)" | {launch.program(tmp_path)} - a; exit 3'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "['-', 'a'] True\n")


def test_torchrun_s_workers_are_forked(tmp_path: Path):
    (tmp_path / "work.py").write_text("import os, sys; print(os.environ['RANK'], 'torch' in sys.modules)")
    done = launch.run(launch.torchrun("work.py"), cwd=tmp_path, capture_output=True, text=True)
    assert sorted(done.stdout.splitlines()) == ["0 True", "1 True"], done.stderr
