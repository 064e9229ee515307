"""The plan: its arithmetic by hand, its choice, and one real measurement."""

import dataclasses
import json
import time

import pytest
from PIL import Image

from understudy.cli import main
from understudy.plan import Measured, choose, rate, way
from understudy.sources.pixels import PixelMap

MEASURED = Measured(read=2000.0, workers=0, teacher=100.0, student=500.0, free=10**9)
RUN = {"images": 10_000, "width": 64, "passes": 20.0, "shown": 1, "cell": 2}


def test_live_by_hand():
    # 200,000 images: 2,000 s in the teacher, 400 s in the student, 100 s of reading; 100 s to embed the images.
    live = way(0, MEASURED, **RUN)
    assert live.hours == pytest.approx(2600 / 3600) and live.teacher_views == 200_000 and live.gigabytes == 0


def test_recorded_by_hand():
    # The teacher sees 4 x 10,000 views: 400 s in place of 2,000. Each cell is 64 numbers of 2 bytes.
    four = way(4, MEASURED, **RUN)
    assert four.hours == pytest.approx(1000 / 3600) and four.teacher_views == 40_000
    assert four.gigabytes == pytest.approx(10_000 * 4 * 128 / 1e9) and four.fits
    assert four.bandwidth == pytest.approx(128 / (1 / 500 + 1 / 2000) / 1e6)
    # A pool that the run never fills takes no more room than what is seen.
    assert way(32, MEASURED, **RUN).gigabytes == way(20, MEASURED, **RUN).gigabytes
    assert way(32, MEASURED, **RUN).teacher_views == 200_000


def test_workers_read_beside_the_training():
    beside = Measured(read=100.0, workers=4, teacher=100.0, student=500.0, free=10**9)
    assert way(0, beside, **RUN).hours == pytest.approx((2400 + 100) / 3600)  # reading, 500 s, is hidden
    assert way(1, beside, **RUN).hours == pytest.approx((500 + 100) / 3600)  # and here it is what lasts


def test_views_of_the_teachers_own_size_are_cut_only_while_it_sees_them():
    # A view for the teacher costs 5 ms of reading: 1,000 s live, 200 s for 40,000 views, shared by those that read.
    apart = dataclasses.replace(MEASURED, cut=0.005)
    assert way(0, apart, **RUN).hours == pytest.approx((2600 + 1000) / 3600)
    assert way(4, apart, **RUN).hours == pytest.approx((1000 + 200) / 3600)
    assert way(4, apart, **RUN).bandwidth == way(4, MEASURED, **RUN).bandwidth
    beside = Measured(read=100.0, workers=4, teacher=1e9, student=1e9, free=10**9, cut=0.005)
    assert way(0, beside, **RUN).hours == pytest.approx((500 + 250) / 3600)


def test_two_views_of_an_image_are_two_of_the_pool():
    two = way(4, MEASURED, **{**RUN, "shown": 2})
    assert two.teacher_views == 40_000 and way(0, MEASURED, **{**RUN, "shown": 2}).teacher_views == 400_000


def test_the_largest_pool_that_pays_and_fits_is_taken():
    ways = tuple(way(pool, MEASURED, **RUN) for pool in (0, 1, 2, 4, 8, 16, 32))
    assert choose(ways).pool == 16  # 32 would see as many teacher views as live
    small = Measured(read=2000.0, workers=0, teacher=100.0, student=500.0, free=30 * 10**6)
    assert choose(tuple(way(pool, small, **RUN) for pool in (0, 1, 8, 16))).pool == 8  # 16 needs 20 MB of the 15
    cheap = Measured(read=2000.0, workers=0, teacher=1e6, student=500.0, free=10**9)
    assert choose(tuple(way(pool, cheap, **RUN) for pool in (0, 1, 8))).teacher == "live"


def test_rate_counts_after_the_first_call():
    calls = []

    def work() -> int:
        calls.append(time.sleep(0.1 if not calls else 0.01))
        return 5

    found = rate(work, 0.05)
    assert len(calls) >= 3 and 5 / 0.1 < found <= 5 / 0.01  # the slow first call would pull it below


def test_small_images_are_timed_as_a_run_reads_them(tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    for i in range(70):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    seen = []
    monkeypatch.setattr("understudy.plan.SAMPLE", 50)
    monkeypatch.setattr("understudy.plan.measure", lambda settings, source, *_: seen.append(source) or MEASURED)
    given = ["--data", str(tmp_path / "images"), "--holdout", "0", "--store", str(tmp_path / "store")]
    teacher = ["--teacher", "python:understudy.models.toy_encoder:ToyEncoder", "--student", "small:resnet8x0.25"]
    assert main(["plan", *given, *teacher, "--batch-size", "32"]) == 0
    assert isinstance(seen[0].images, PixelMap) and len(seen[0]) == 50
    assert "70 images" in capsys.readouterr().out and not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_real_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("understudy.plan.plan.__kwdefaults__", {"seconds": 0.2})
    monkeypatch.chdir(tmp_path)
    given = [
        "--data", "digits:train", "--limit", "200", "--eval-data", "digits", "--teacher",
        "python:understudy.models.toy_encoder:ToyEncoder", "--student", "small:resnet8x0.25", "--passes", "40",
        "--batch-size", "64", "--device", "cpu", "--head-hidden", "16",
    ]  # fmt: skip
    assert main(["plan", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 200 and found["steps"] == 125 and len(found["ways"]) == 7
    assert all(found["measured"][name] > 0 for name in ("read", "teacher", "student", "free"))
    assert not any(tmp_path.iterdir()), "a plan writes nothing"
    assert main(["plan", *given]) == 0
    assert "take this" in capsys.readouterr().out
    assert main(["plan", "--data", "digits:train", "--student", "small:resnet8", "--method", "moco"]) == 1
    assert "has no teacher" in capsys.readouterr().err
