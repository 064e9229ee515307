"""The command line: help that is short, faults that are sentences, settings that can be printed, completion."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from understudy import __version__
from understudy.cli import VERBS, main
from understudy.cli.flags import SENTENCES, Flags
from understudy.cli.options import plain, split_method_settings
from understudy.cli.program import Parser
from understudy.errors import ConfigError
from understudy.losses import LOSSES
from understudy.settings import closest

DESIGNED = [
    "demo",
    "run",
    "plan",
    "pretrain",
    "embed",
    "graph",
    "train",
    "evaluate",
    "compare",
    "ablate",
    "export",
    "report",
    "cite",
    "doctor",
]
RUN = ["run", "--data", "digits", "--teacher", "python:x:Y", "--student", "small:resnet8"]


def called(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a call."""
    try:
        status = main(words)
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def flags_of(verb: str) -> Flags:
    flags = Flags(Parser(prog=f"understudy {verb}"), VERBS[verb].main)
    VERBS[verb]().flags(flags)
    return flags


def test_the_verbs_are_those_of_the_design_in_their_order(capsys):
    assert list(VERBS) == DESIGNED
    status, out, _ = called(capsys, "--help")
    assert status == 0
    assert re.findall(r"^    (\w+)  ", out, flags=re.MULTILINE) == DESIGNED
    assert called(capsys, "--version") == (0, f"understudy {__version__}\n", "")


@pytest.mark.parametrize("verb", DESIGNED)
def test_help_is_short_and_help_all_has_every_flag(capsys, verb):
    status, out, _ = called(capsys, verb, "--help")
    assert status == 0 and len(out.splitlines()) <= 65
    shown = set(re.findall(r"^  (?:-h, )?(--[\w.-]+)", out, flags=re.MULTILINE))
    assert len(shown) <= 23
    flags = flags_of(verb)
    assert {"--" + name.replace("_", "-") for name in VERBS[verb].main if name in flags.known} <= shown
    if flags.hidden:
        assert f"{flags.hidden} more settings: `understudy {verb} --help-all`" in out
        status, out, _ = called(capsys, verb, "--help-all")
        assert status == 0
        for name in flags.known:
            assert f"--{name.replace('_', '-')}" in out, name


def test_main_flags_are_settings_that_exist():
    for verb in DESIGNED:
        assert set(VERBS[verb].main) <= set(flags_of(verb).known)


def test_help_all_lists_the_settings_of_every_method(capsys):
    out = called(capsys, "run", "--help-all")[1]
    section = out.split("settings of the methods:")[1]
    for name, method in LOSSES.items():
        (block,) = re.findall(rf"^  {name}: .*\n((?:    .*\n?)*)", section, flags=re.MULTILINE)
        assert re.findall(r"--method\.([\w-]+)", block) == [
            field.name.replace("_", "-") for field in dataclasses.fields(method.Settings)
        ]


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom understudy.cli import main\ndef call(*words):\n"
        "    try: main(words)\n    except SystemExit: pass\n"
        "for words in (['--help'], ['run', '--help'], ['compare', '--help'], ['run', '--epochs', '3']): call(*words)\n"
        "heavy = [name for name in ('torch', 'numpy', 'rich', 'shtab') if name in sys.modules]\n"
        "print(*heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("verb", "theirs", "ours"),
    [
        ("run", "epochs", "passes"), ("run", "num-epochs", "passes"), ("run", "lr", "optimizer.lr"),
        ("run", "learning_rate", "optimizer.lr"), ("run", "arch", "student"), ("run", "model", "student"),
        ("run", "batch", "batch-size"), ("run", "num-workers", "workers"), ("run", "gpu", "device"),
        ("run", "output", "out"), ("run", "output-dir", "out"), ("run", "dataset", "data"),
        ("run", "wd", "optimizer.weight-decay"),
        ("run", "optimizer", "optimizer.name"), ("run", "img-size", "image-size"), ("run", "amp", "precision"),
        ("train", "epochs", "passes"), ("compare", "epochs", "passes"), ("plan", "dataset", "data"),
        ("embed", "model", "teacher"), ("evaluate", "dataset", "eval-data"),
    ],
)  # fmt: skip
def test_the_words_of_other_programs_are_answered_by_ours(capsys, verb, theirs, ours):
    positional = ["model"] if verb == "evaluate" else []
    status, _, err = called(capsys, verb, *positional, f"--{theirs}", "3")
    assert status == 1
    assert err.startswith(f"understudy {verb}: Unknown argument '--{theirs.replace('_', '-')}'. Here it is --{ours}: ")
    assert err.count("--") == 2 and err.endswith(".\n")


def test_length_is_passes_in_a_file_too(capsys, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("epochs = 3\n")
    status, _, err = called(capsys, *RUN, "--config", str(file))
    assert status == 1
    assert "Unknown setting 'epochs'. Here it is 'passes': Length of training" in err


@pytest.mark.parametrize(
    ("flag", "words"), [("resume", "automatic"), ("pretrained", "@pretrained"), ("ddp", "torchrun")]
)
def test_what_no_flag_stands_for_is_explained(capsys, flag, words):
    assert flag in SENTENCES
    status, _, err = called(capsys, "train", f"--{flag}")
    assert status == 1 and words in err


def test_an_unknown_flag_names_three_at_most(capsys):
    for word, nearest in (("--pases", "--passes"), ("--views.pol", "--views.pool"), ("--k", "--neighbors.k"),
                          ("--protocols", "--evaluation.protocols")):  # fmt: skip
        status, _, err = called(capsys, "run", word, "3")
        assert status == 1
        assert f"Unknown argument '{word}'. Did you mean '{nearest}'" in err
        assert len(re.findall(r"'--", err)) <= 4 and "understudy run --help-all" in err
    status, _, err = called(capsys, "run", "--zzzzzz")
    assert "Unknown argument '--zzzzzz'. `understudy run --help-all` lists all flags." in err
    assert "Unexpected argument 'photos'" in called(capsys, "run", "photos")[2]


def test_closest_prefers_synonyms_then_the_same_last_word():
    known = {"a.lr": {"synonyms": "rate"}, "b.lr": {}, "lrs": {}, "pool": {}}
    assert closest("rate", known) == (["a.lr"], True)
    assert closest("lr", known)[0][:2] == ["a.lr", "b.lr"]
    assert closest("pol", known) == (["pool"], False)
    assert closest("zzzz", known) == ([], False)


def test_a_wrong_call_is_one_sentence_with_status_2(capsys):
    for words, said in ((["rnu"], "unknown verb 'rnu'. Did you mean 'run'?"), ([], "required: VERB"),
                        (["graph"], "required: STORE"), (["run", "--data"], "expected one argument")):  # fmt: skip
        status, out, err = called(capsys, *words)
        assert (status, out) == (2, "")
        assert said in err and len(err.splitlines()) == 1 and "--help` shows how it is called" in err


def test_hyphens_and_underscores_are_one_flag():
    assert plain(["--batch_size", "a_b", "--eval_data=x_y", "-h"]) == ["--batch-size", "a_b", "--eval-data=x_y", "-h"]


def test_method_settings_are_taken_out_of_the_words():
    words = ["--a", "1", "--method.weight", "-1", "--method.tau-teacher=0.1", "--method", "seed"]
    assert split_method_settings(words) == (
        ["--a", "1", "--method", "seed"], {"method.weight": "-1", "method.tau_teacher": "0.1"}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="'--method.weight' needs a value"):
        split_method_settings(["--method.weight", "--seed"])


def test_method_settings_need_a_method(capsys):
    assert "Unknown argument '--method.weight'" in called(capsys, "evaluate", "x", "--method.weight", "3")[2]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    status, out, err = called(capsys, *words, "--print-config")
    assert (status, err) == (0, "")
    return tomllib.loads(out)


def test_print_config_is_what_a_run_saves_and_runs_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "below.toml"
    file.write_text('passes = 3\nbatch_size = 32\n[optimizer]\nname = "sgd"\n[method]\nname = "seed"\nqueue = 64\n')
    config = printed(capsys, *RUN, "--config", str(file), "--batch_size", "8", "--views.pool=4", "--tensorboard",
                     "--evaluation.detection.masks", "false", "--teacher-mean", "0,0.5,1",
                     "--seed", "1", "--seed", "2")  # fmt: skip
    assert (config["passes"], config["batch_size"], config["seed"]) == (3, 8, 2)  # a flag wins, the last one of two
    assert config["tensorboard"] is True and config["evaluation"]["detection"]["masks"] is False
    assert config["teacher_mean"] == [0, 0.5, 1] and config["views"]["pool"] == 4
    assert config["method"] == {"name": "seed", "queue": 64}
    assert config["optimizer"]["lr"] == 0.03  # derived from what was written, and written down
    saved = tmp_path / "saved.toml"
    saved.write_text(called(capsys, *RUN, "--config", str(file), "--print-config")[1])
    assert printed(capsys, "run", "--config", str(saved)) == tomllib.loads(saved.read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"below.toml", "saved.toml"}


@pytest.mark.parametrize(
    "words",
    [
        ["train", *RUN[1:]], ["plan", *RUN[1:]], ["pretrain", "--data", "digits", "--model", "small:resnet8"],
        ["embed", "--data", "digits", "--teacher", "x"], ["compare", *RUN[1:], "--methods", "coss,rkd", "--out", "x"],
        ["ablate", *RUN[1:], "--vary", "passes=1,2", "--out", "x"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_every_verb_with_a_file_prints_its_configuration(capsys, words):
    assert printed(capsys, *words)["data"] == "digits"


def test_a_wrong_value_is_a_sentence_with_the_setting(capsys):
    for words, said in ((["--batch-size", "0"], "'batch_size' must be at least 1; got 0."),
                        (["--head", "big"], "'head' must be one of auto, mlp,"),
                        (["--passes", "many"], "'passes' must be a number; got 'many'.")):  # fmt: skip
        status, _, err = called(capsys, *RUN, *words)
        assert status == 1 and said in err


def test_an_interrupt_and_a_stop_have_their_status(capsys, monkeypatch):
    from understudy import pipeline
    from understudy.errors import Stopped

    for raised, status in ((KeyboardInterrupt, 130), (Stopped, 143)):

        def fail(settings, raised=raised):
            raise raised

        monkeypatch.setattr(pipeline, "run", fail)
        assert called(capsys, *RUN)[0] == status


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_flags_methods_and_protocols(capsys, shell):
    status, script, err = called(capsys, "--print-completion", shell)
    assert (status, err) == (0, "")
    for word in (*DESIGNED, "views.pool", "coss_centered", "asymmetric_knn", "fp32"):
        assert word in script, word


def test_completion_of_another_shell_is_refused(capsys):
    status, _, err = called(capsys, "--print-completion", "csh")
    assert status == 1 and "one of bash, zsh, fish; got csh" in err


def completed(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> set[str]:
    """What bash offers after the words of a line."""
    (tmp_path / "understudy.bash").write_text(called(capsys, "--print-completion", "bash")[1])
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f"source understudy.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
        "COMP_POINT=${#COMP_LINE}; function=$(complete -p understudy | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        f"$function understudy '{words[-1]}' '{words[-2]}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    return {word.strip() for word in done.stdout.split()}


def test_bash_completes(tmp_path, capsys):
    assert {"run", "report"} <= completed(tmp_path, capsys, "understudy r") <= set(DESIGNED)
    assert "--views.pool" in completed(tmp_path, capsys, "understudy run --views.p")
    assert completed(tmp_path, capsys, "understudy run --method cos") == {"coss", "coss_centered"}
    assert completed(tmp_path, capsys, "understudy run --optimizer.name s") == {"sgd"}


def test_a_home_behind_an_equals_sign(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")  # the shell expands `--out ~/page` and leaves `--out=~/page`
    report = flags_of("report").parser.parse_args(["--out=~/page.html", "~/runs/a"])
    assert (report.out, report.runs) == ("/home/someone/page.html", ["/home/someone/runs/a"])
