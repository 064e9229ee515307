"""torch.compile in the loop: chosen by rule and measurement, repeated by a resumed run, the same weights and names."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import launch
from toy_runs import TEACHER
from understudy.artifacts import Run
from understudy.errors import TrainingError
from understudy.models.contract import Contract
from understudy.models.encoder import Encoder
from understudy.models.teacher import Teacher
from understudy.pipeline import RunSettings
from understudy.settings import resolve
from understudy.train import compile as room
from understudy.train.compile import Compiled, Networks, Workload, choose, compiled_copy, measure
from understudy.train.distributed import Processes

CPU = torch.device("cpu")
EAGER = Compiled(student=False, teacher=False, device="cpu")
BOTH = Compiled(student=True, teacher=True, device="cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def networks() -> Networks:
    taught = Encoder(network(), 4, Contract(8), "python:t", "python:t", "given", fingerprint="f")
    return Networks(network(), network().eval(), Teacher(taught))


def chosen(setting: str, given: Networks, before: Compiled | None = None) -> tuple[Networks, Compiled, list[str]]:
    sentences: list[str] = []
    workload = Workload(
        student=(6, 8), key=(3, 8), teacher=(5, 8), autocast=torch.autocast("cpu", enabled=False), steps=10
    )
    called, found = choose(setting, given, workload, Processes(0, 1, CPU), before=before, notify=sentences.append)
    return called, found, sentences


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were compiled for, by a backend that runs what dynamo hands it as it is."""
    compiled_for: list[int] = []

    def backend(graph, inputs):
        compiled_for.extend(len(x) for x in inputs if x.shape[1:] == (3, 8, 8))
        return graph.forward

    monkeypatch.setattr(room, "BACKEND", backend)
    torch._dynamo.reset()
    return compiled_for


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("nothing may be measured or compiled here")


def test_a_cpu_measures_nothing_unless_it_is_told_to_compile(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "compiled_copy", forbidden)
    monkeypatch.setattr(room, "seconds_of", forbidden)
    given = networks()
    for wanted in ("auto", "false"):
        called, found, said = chosen(wanted, given)
        assert called is given and found == EAGER and not said


def test_what_is_compiled_shares_its_weights_and_a_trial_leaves_no_trace(graphs: list[int]):
    given = networks()
    before = {name: value.clone() for name, value in given.student.state_dict().items()}
    called, found, said = chosen("true", given)
    assert found == BOTH and set(graphs) == {3, 5, 6}
    assert len(said) == 1 and said[0].count("compiled in") == 2 and "student" in said[0] and "teacher" in said[0]
    for mine, theirs in ((called.student, given.student), (called.key, given.key), (called.teacher, given.teacher)):
        assert mine is not theirs and list(mine.state_dict()) == list(theirs.state_dict())
        assert all(x is y for x, y in zip(mine.parameters(), theirs.parameters(), strict=True))
    for name, value in given.student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in given.student.parameters())
    # What was handed in stays eager: signals, files and other callers go on with it.
    seen = len(graphs)
    given.student(torch.rand(7, 3, 8, 8)), given.teacher(torch.rand(7, 3, 8, 8))
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(called.teacher(images), given.teacher(images))
    # The statistics that one moves are the other's: one batch each.
    called.student(torch.rand(6, 3, 8, 8).to(memory_format=torch.channels_last))
    with torch.no_grad():
        called.key(torch.rand(3, 3, 8, 8))
    assert len(graphs) == seen  # and what was tried is what is run: nothing is compiled a second time
    assert int(given.student[1].num_batches_tracked) == 2


def test_a_batch_that_lost_images_is_not_compiled_for(graphs: list[int]):
    given = networks()
    called, found, _ = chosen("true", given)
    known, images = len(graphs), torch.rand(4, 3, 8, 8)
    with found.stance(whole=False):
        assert torch.equal(called.key(images), given.key(images))
    assert len(graphs) == known
    with found.stance(whole=True):  # the test above would pass with a backend that is never asked
        called.key(images)
    assert len(graphs) > known


def test_a_resumed_run_compiles_what_it_began_with_and_measures_no_choice(graphs: list[int], monkeypatch):
    monkeypatch.setattr(room, "GAIN", 1e9)  # nothing would ever pay
    only_teacher = dataclasses.replace(BOTH, student=False)
    given = networks()
    called, found, _ = chosen("auto", given, before=only_teacher)
    assert found == only_teacher and called.student is given.student and called.teacher is not given.teacher
    assert set(graphs) == {5}
    called, found, _ = chosen("auto", given, before=EAGER)
    assert found == EAGER and called.teacher is given.teacher
    elsewhere = dataclasses.replace(BOTH, device="cuda")
    assert chosen("auto", given, before=elsewhere)[1] == EAGER


def pace(seconds: float) -> Networks:
    module = nn.Identity()
    module.seconds = seconds
    return Networks(module, None, None)


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[Networks], None]:
    """A pass that takes as long as its networks say, by a clock that nothing else moves."""
    now = [0.0]

    def passing(called: Networks) -> None:
        now[0] += called.student.seconds

    monkeypatch.setattr(room, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return passing


def test_compiling_has_to_pay_over_the_length_of_the_run(sleep):
    slow, quick = pace(0.03), pace(0.01)
    tried, words = measure(sleep, slow, lambda: quick, 1_000_000, CPU, required=False)
    assert tried is quick and "saved over the run" in words
    tried, words = measure(sleep, slow, lambda: pace(0.029), 1_000_000, CPU, required=False)
    assert tried is None and words == "not compiled: 0.029 s a step in place of 0.03"
    tried, words = measure(sleep, slow, forbidden, 100, CPU, required=False)
    assert tried is None and "0:00:03 of work" in words
    tried, words = measure(sleep, quick, lambda: slow, 100, CPU, required=True)
    assert tried is slow and "LOST over the run" in words


def test_a_compiler_that_fails_is_a_sentence_and_where_it_must_not_a_refusal(sleep, monkeypatch: pytest.MonkeyPatch):
    def broken() -> Networks:
        raise RuntimeError("no compiler\nfound\n\nand a long trace")

    tried, words = measure(sleep, pace(0.03), broken, 1_000_000, CPU, required=False)
    assert tried is None and words == "not compiled, because that failed (RuntimeError: no compiler found)"

    def backend(graph, inputs):
        raise OSError("no such program: c++")

    monkeypatch.setattr(room, "BACKEND", backend)
    torch._dynamo.reset()
    with pytest.raises(TrainingError, match=r"no such program: c\+\+.*--compile false"):
        chosen("true", networks())


def test_true_and_false_may_be_written_as_words_or_as_booleans():
    settings = [resolve(RunSettings, {"data": "digits", "student": "s", "compile": value}) for value in (True, "true")]
    assert settings[0] == settings[1] and settings[0].compile == "true"
    assert resolve(RunSettings, {"data": "digits", "student": "s"}).compile == "auto"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_default_backend_computes_what_the_network_does():
    torch._dynamo.reset()
    module = nn.Sequential(nn.Flatten(), nn.GELU(), nn.Softplus())  # elementwise: one kernel to compile
    x = torch.linspace(-3, 3, 60).reshape(5, 12)
    expected = np.log1p(
        np.exp([0.5 * v * (1 + float(torch.erf(torch.tensor(v / 2**0.5)))) for v in x.flatten().tolist()])
    )
    np.testing.assert_allclose(compiled_copy(module)(x).flatten().numpy(), expected, rtol=1e-5)


SCRIPT = """
import os, sys
import torch
from torch import nn
from understudy.pipeline import resolve_run, train_stage
from understudy.train import compile, state

def student():
    torch.manual_seed(0)
    norm, drop = nn.BatchNorm2d(8), nn.Dropout(0.1)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), norm, nn.ReLU(), drop, nn.AdaptiveAvgPool2d(2), nn.Flatten())

def plain():  # nothing in which a process differs from another
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())

def main():
    compile.BACKEND = "aot_eager"  # dynamo and autograd's graphs as ever, without the minutes of a C++ compiler
    def run(out, **more):
        table = {
            "data": "digits:train", "limit": 160, "holdout": 0, "probes": 0, "workers": 0, "device": "cpu",
            "batch_size": 32, "passes": 2, "teacher": "python:thumbnail:ToyEncoder", "student": "python:job:student",
            "head_hidden": 16, "neighbors.k": 3, "compile": "true", "out": out, **more,
        }
        return train_stage(resolve_run(table), quiet=True)
    jobs = {
        "alone": lambda: run("alone"),
        "eager": lambda: run("eager", compile="false"),
        "stopped": lambda: stopped(run),
        "key": lambda: run("key", method="isd", chunks=2, **{"neighbors.k": 0, "method.queue": 64}),
        "one": lambda: run("one", student="python:job:plain"), "two": lambda: run("two", student="python:job:plain"),
    }
    for name in sys.argv[1:]:
        jobs[name]()

def stopped(run):
    rate = state.learning_rate
    def interrupting(step, *rest):
        if step == 4:
            os.kill(os.getpid(), 15)
        return rate(step, *rest)
    state.learning_rate = interrupting
    assert run("stopped") is None
    state.learning_rate = rate
    assert run("stopped") is not None

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "job.py").write_text(SCRIPT)
    (folder / "thumbnail.py").write_text(TEACHER)
    run(folder, sys.executable, "job.py", "alone", "eager", "stopped", "key", "one")
    return folder


def run(folder: Path, *command: str) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    done = launch.run(
        [*command], cwd=folder, capture_output=True, text=True, timeout=280, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student.safetensors")


@pytest.mark.slow
def test_a_compiled_run_trains_the_weights_of_an_eager_one_under_the_same_names(trained: Path):
    compiled, eager = weights(trained / "alone"), weights(trained / "eager")
    assert list(compiled) == list(eager)
    start = next(row for row in Run(trained / "alone").metrics() if row["kind"] == "start")
    assert start["compiled"] == {"student": True, "teacher": True, "device": "cpu"}
    assert not next(iter(Run(trained / "eager").metrics()))["compiled"]["student"]
    for name, value in eager.items():
        if value.is_floating_point():
            torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_run_that_was_stopped_ends_with_the_same_bits(trained: Path):
    kinds = [row["kind"] for row in Run(trained / "stopped").metrics()]
    assert kinds.count("resume") == 1
    undisturbed, stopped = weights(trained / "alone"), weights(trained / "stopped")
    assert all(torch.equal(stopped[name], value) for name, value in undisturbed.items())


@pytest.mark.slow
def test_chunks_and_the_average_that_makes_keys_are_compiled_too(trained: Path):
    run = Run(trained / "key")
    rows = run.metrics()
    assert run.trained and rows[0]["compiled"] == {"student": True, "teacher": False, "device": "cpu"}
    assert all(np.isfinite(row["loss"]) for row in rows if row["kind"] == "step")


@pytest.mark.slow
def test_two_compiled_processes_train_the_weights_of_one(trained: Path):
    run(trained, *launch.torchrun("job.py", "two"))
    one, two = weights(trained / "one"), weights(trained / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4)
