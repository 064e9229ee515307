"""Which settings are those of a run that was begun, in this version and in others."""

import dataclasses
import re

import pytest

from understudy.artifacts import Run
from understudy.errors import TrainingError
from understudy.pipeline import RunSettings, resolve_method
from understudy.settings import resolve, setting, write_toml
from understudy.train.resume import refuse_other_settings, resolved, run_id, same_settings


def test_settings_are_told_apart_without_their_method(tmp_path):
    run = Run(tmp_path)

    def given(**method):
        return resolve(RunSettings, {"data": "digits", "student": "small:resnet8", "teacher": "run:x", **method})

    own = {"method": "coss", "method.weight": 1.0, "method.scale": "paper"}
    run.config_path.write_text(write_toml(resolved(resolve_method(given(**own)))))
    assert same_settings(run, given(**own)) and same_settings(run, given(**{**own, "method.weight": "1"}))
    for other in ({"method.weight": "0.5"}, {"method.weight": "much"}, {"method.scale": "code"}, {"method": "pkt"}):
        assert not same_settings(run, given(**{**own, **other}))
    assert not same_settings(run, given(method="coss")) and not same_settings(run, given(**own, passes=3))
    run.config_path.write_text(run.config_path.read_text().replace("passes = 100.0", "passes = 100.0\nforesight = 3"))
    assert not same_settings(run, given(**own))


def test_settings_that_are_newer_or_older_than_a_run(tmp_path):
    settings = resolve(RunSettings, {"data": "digits", "student": "small:resnet8", "teacher": "run:x", "chunks": 2})
    run = Run(tmp_path)
    run.config_path.write_text(write_toml(resolved(settings)))
    refuse_other_settings(run, settings)

    whole = run.config_path.read_text()
    older = re.sub(r"(?m)^(schedule|dtype) = .*\n", "", whole)
    assert len(older.splitlines()) == len(whole.splitlines()) - 2
    run.config_path.write_text(older)
    refuse_other_settings(run, settings)
    run.config_path.write_text(whole.replace("chunks = 2\n", ""))
    with pytest.raises(TrainingError, match=r"chunks \(was 1, now 2\)"):
        refuse_other_settings(run, settings)
    run.config_path.write_text("foresight = 3\n" + whole)
    with pytest.raises(TrainingError, match="this version does not take: Unknown setting 'foresight'"):
        refuse_other_settings(run, settings)


@pytest.mark.parametrize("begun", [{"queue": 64, "temperature": 1}, {"queue": "64", "temperature": "1.0"}])
def test_a_method_setting_is_one_whether_a_file_or_a_flag_says_it(tmp_path, begun):
    def given(**own):
        method = {f"method.{key}": value for key, value in own.items()}
        return resolve(
            RunSettings,
            {"data": "digits", "student": "small:resnet8", "teacher": "run:x", "method": "queue_kl", **method},
        )

    run = Run(tmp_path)
    run.config_path.write_text(write_toml(resolved(given(**begun))))
    typed = {"name": "queue_kl", "queue": 64, "temperature": 1.0}
    for again in ({"queue": 64, "temperature": 1.0}, {"queue": "64", "temperature": "1"}):
        refuse_other_settings(run, given(**again))
        assert resolve_method(given(**again)).method == typed
        assert run_id(resolve_method(given(**again))) == run_id(resolve_method(given(**begun)))
    with pytest.raises(TrainingError, match=r"method.queue \(was 64, now 32\)"):
        refuse_other_settings(run, given(queue="32", temperature="1"))


def test_a_version_with_more_settings_finds_a_run_by_its_name():
    @dataclasses.dataclass(frozen=True)
    class Newer(RunSettings):
        foresight: int = setting(0, "How far the student looks ahead.")

    given = {"data": "digits", "teacher": "run:x", "student": "small:resnet8", "passes": 3}
    now, newer = run_id(resolve(RunSettings, given)), run_id(resolve(Newer, given))
    assert now == newer != run_id(resolve(Newer, {**given, "foresight": 1}))
    assert now != run_id(resolve(RunSettings, {**given, "passes": 4}))
