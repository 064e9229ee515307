"""Students that leave: what each target holds, how it is judged, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from understudy.artifacts import Run, write_json
from understudy.cli import main
from understudy.errors import ConfigError, MissingDependency, StoreError
from understudy.export.exporting import export_student
from understudy.export.onnx_graph import _preprocessing, open_model
from understudy.export.parity import centered_cosines, compared
from understudy.export.settings import ExportSettings
from understudy.export.targets import TARGETS
from understudy.models.contract import Contract
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student, load_student, save_student
from understudy.settings import resolve, write_toml


def make_student(folder: Path, spec: str = "small:resnet8", **settings: Any) -> Run:
    """A run folder as training leaves it, of a student whose rows differ from image to image."""
    torch.manual_seed(0)
    student = build_student(StudentSettings(spec, image_size=32, **settings), 24)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    folder.mkdir(parents=True)
    run = Run(folder)
    run.config_path.write_text(write_toml({"data": "digits:train", "eval_data": "digits", "out": str(folder)}))
    metadata = {
        "method": {"name": "coss_centered"}, "teacher": {"spec": "onnx:far/away/teacher.onnx"},
        "in_teacher_space": True, "data": {"spec": "digits:train", "images": 1437}, "passes": 2.0, "seed": 0,
    }  # fmt: skip
    save_student(student.eval(), run, metadata)
    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_student(tmp_path_factory.mktemp("export") / "small", head="mlp", hidden=32)


def settings(to: str, **values: Any) -> ExportSettings:
    return resolve(ExportSettings, {"to": to, "images": 48, "calibration": 16, **values})


def pixels(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, size, size)).astype(np.float32)


def embedded(run: Run, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return load_student(run).embed(torch.from_numpy(images)).numpy()


def test_a_folder_is_the_student(small: Run, tmp_path: Path) -> None:
    record = export_student(small, settings("folder", out=str(tmp_path), license="mit"))
    figures = record["targets"]["folder"]["parity"]["embedding"]
    assert figures["largest_difference"] == 0
    assert figures["overlap@10"] == 100
    assert (tmp_path / "folder" / "student.safetensors").read_bytes() == small.weights_path.read_bytes()
    assert np.array_equal(embedded(Run(tmp_path / "folder"), pixels(2)), embedded(small, pixels(2)))
    card = (tmp_path / "folder" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: understudy\nlicense: mit\npipeline_tag: image-feature-extraction\n")
    assert "`onnx:teacher.onnx`" in card
    assert "far/away" not in card  # nobody's folders
    assert "has not been run" in card


def test_onnx_takes_batches_of_any_length(small: Run, tmp_path: Path) -> None:
    import onnxruntime

    export_student(small, settings("onnx", out=str(tmp_path), output="both"))
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    for count in (1, 5):
        embedding, features = session.run(["embedding", "features"], {"image": pixels(count)})
        assert np.abs(embedding - embedded(small, pixels(count))).max() < 1e-5
        assert features.shape == (count, 64)
    contract = json.loads(session.get_modelmeta().custom_metadata_map["understudy.input"])
    assert Contract.from_table(contract) == load_student(small).contract


def test_a_student_that_left_can_be_a_teacher(small: Run, tmp_path: Path) -> None:
    from understudy.models.teacher import build_teacher

    export_student(small, settings("onnx", out=str(tmp_path)))
    teacher = build_teacher(f"onnx:{tmp_path / 'student.onnx'}")
    images = torch.rand(3, 3, 32, 32)
    wanted = load_student(small).embed(load_student(small).contract.prepare(images))
    assert torch.allclose(teacher(images), wanted, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(37, 90), (64, 48), (32, 32), (300, 211), (20, 33)])
def test_the_preprocessing_of_the_graph_is_that_of_training(interpolation: str, height: int, width: int) -> None:
    contract = Contract(32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), interpolation, 0.875)
    rng = np.random.default_rng(0)
    waves = np.add.outer(np.arange(height) / 9, np.arange(width) / 7)[:, :, None] + rng.uniform(0, 6, 3)
    picture = (127 + 90 * np.sin(waves) + rng.normal(0, 20, (height, width, 3))).clip(0, 255).astype(np.uint8)
    import onnxruntime

    session = onnxruntime.InferenceSession(_preprocessing(contract, 10).SerializeToString())
    given = session.run(None, {"pictures": np.stack([picture, picture[::-1]])})[0]
    wanted = [contract.preprocess(Image.fromarray(image)).numpy() for image in (picture, picture[::-1])]
    steps = np.abs(given - np.stack(wanted)) * np.array(contract.std, np.float32).reshape(3, 1, 1) * 255
    if interpolation == "nearest":  # halfway between two rows, float32 may fall on the other side
        assert (steps > 0.01).mean() < 0.2
        return
    assert steps.max() < 2.01  # of 255
    assert steps.mean() < 0.05


def test_pictures_of_any_size_go_in(small: Run, tmp_path: Path) -> None:
    record = export_student(small, settings("onnx", out=str(tmp_path), with_preprocessing=True))
    assert record["targets"]["onnx"]["tolerance"] == 1e-3
    picture = np.random.default_rng(0).integers(0, 255, (1, 61, 50, 3), np.uint8)
    row = open_model(tmp_path / "student.onnx")(picture)["embedding"]
    assert np.abs(row - load_student(small).encode(list(picture))).max() < 0.02 * np.abs(row).max()


def test_lanczos_is_refused_where_a_graph_has_none(small: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    student = load_student(small)
    student.contract = student.contract.override(interpolation="lanczos")
    run.path.mkdir()
    run.config_path.write_text(small.config_path.read_text())
    save_student(student, run, student.metadata)
    record = export_student(run, settings("onnx", with_preprocessing=True))
    assert "ONNX has no lanczos interpolation" in record["targets"]["onnx"]["failed"]
    assert not (run.path / "export" / "student.onnx").exists()


@pytest.mark.slow
def test_int8_is_small_and_leaves_layers_in_float_until_it_agrees(small: Run, tmp_path: Path) -> None:
    loose = export_student(small, settings("onnx,onnx-int8", out=str(tmp_path / "a"), tolerance=0.5))["targets"]
    assert loose["onnx-int8"]["float_layers"] == []
    assert loose["onnx-int8"]["bytes"] < 0.5 * loose["onnx"]["bytes"]
    lost = 1 - loose["onnx-int8"]["parity"]["embedding"]["centered_cosine_mean"]
    assert lost > 1e-5  # 8 bits are not 32
    strict = export_student(small, settings("onnx-int8", out=str(tmp_path / "b"), tolerance=lost / 2))["targets"]
    assert "failed" not in strict["onnx-int8"], strict
    assert 0 < len(strict["onnx-int8"]["float_layers"]) < strict["onnx-int8"]["layers"]
    assert 1 - strict["onnx-int8"]["parity"]["embedding"]["centered_cosine_mean"] <= lost / 2
    never = export_student(small, settings("onnx-int8", out=str(tmp_path / "c"), tolerance=1e-12))["targets"]
    assert "8 bits lose too much" in never["onnx-int8"]["failed"]
    assert not (tmp_path / "c" / "student.int8.onnx").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_int8(small: Run, tmp_path: Path) -> None:
    for name in "ab":
        export_student(small, settings("onnx-int8", out=str(tmp_path / name)))
    first, second = ((tmp_path / name / "student.int8.onnx").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.slow
def test_a_program_opens_without_this_package(small: Run, tmp_path: Path) -> None:
    export_student(small, settings("torch", out=str(tmp_path)))
    np.save(tmp_path / "in.npy", pixels(3))
    script = (
        "import sys, numpy, torch; sys.modules['understudy'] = None;"
        "[rows] = torch.export.load('student.pt2').module()(torch.from_numpy(numpy.load('in.npy')));"
        "numpy.save('out.npy', rows.detach().numpy())"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True)
    assert np.abs(np.load(tmp_path / "out.npy") - embedded(small, pixels(3))).max() < 1e-5


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_student(tmp_path_factory.mktemp("export") / "net", "timm:test_resnet")


def test_timm_and_transformers_open_the_backbone(of_timm: Run, tmp_path: Path) -> None:
    import timm
    from transformers import AutoModel

    record = export_student(of_timm, settings("timm,hf", out=str(tmp_path)))
    assert all("failed" not in figures for figures in record["targets"].values()), record
    images, student = torch.from_numpy(pixels(2)), load_student(of_timm)
    wanted = student.features(images)
    network = timm.create_model(
        "test_resnet", num_classes=0, checkpoint_path=str(tmp_path / "timm" / "model.safetensors")
    ).eval()
    assert torch.allclose(network(images), wanted, atol=1e-5)
    model = AutoModel.from_pretrained(tmp_path / "hf").eval()
    assert torch.allclose(model(pixel_values=images).pooler_output, wanted, atol=1e-5)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]
    assert tuple(config["mean"]) == student.contract.mean


def test_a_target_that_cannot_hold_it_says_so_and_the_others_go_on(small: Run, tmp_path: Path, capsys: Any) -> None:
    code = main(["export", str(small.path), "--to", "timm,hf,folder", "--images", "32", "--out", str(tmp_path)])
    assert code == 1
    said = capsys.readouterr().err
    assert "timm: timm opens students that are timm networks; this one is small:resnet8." in said
    assert "folder: " in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "folder"]


def test_openvino_runs_what_it_was_given(small: Run, tmp_path: Path) -> None:
    import openvino

    figures = export_student(small, settings("openvino", out=str(tmp_path)))["targets"]["openvino"]
    assert figures["run"] is True
    model = openvino.Core().compile_model(tmp_path / "openvino" / "student.xml", "CPU")
    assert np.abs(model(pixels(3))[0] - embedded(small, pixels(3))).max() < 1e-2


def test_core_ml_is_converted_and_said_not_to_have_run(small: Run, tmp_path: Path) -> None:
    figures = export_student(small, settings("coreml", out=str(tmp_path)))["targets"]["coreml"]
    if sys.platform == "darwin":
        assert figures["run"] is True
    else:
        assert figures["why"] == "converted, not run: Core ML runs on macOS only"
    assert (tmp_path / "student.mlpackage" / "Manifest.json").is_file()


def test_over_the_bound_nothing_is_kept(small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_student(small, settings("onnx", out=str(tmp_path)))
    before = (tmp_path / "student.onnx").read_bytes()

    def wrong(place: Path) -> Any:
        return lambda images: {"embedding": np.roll(embedded(small, images), 1, axis=1)}

    monkeypatch.setattr("understudy.export.onnx_graph.open_model", wrong)
    figures = export_student(small, settings("onnx", out=str(tmp_path)))["targets"]["onnx"]
    assert "onnx is not the student" in figures["failed"]
    assert "largest_difference" in figures["failed"]
    assert (tmp_path / "student.onnx").read_bytes() == before  # of the export before, which was right


def test_what_a_kill_left_is_swept_and_figures_of_other_targets_stay(small: Run, tmp_path: Path) -> None:
    export_student(small, settings("folder", out=str(tmp_path)))
    (tmp_path / ".partial" / "onnx").mkdir(parents=True)
    record = export_student(small, settings("torch", out=str(tmp_path)))
    assert set(record["targets"]) == {"folder", "torch"}
    assert not (tmp_path / ".partial").exists()


def test_a_full_disk_is_a_sentence(small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    figures = export_student(small, settings("torch", out=str(tmp_path)))["targets"]["torch"]
    assert "is full" in figures["failed"]
    assert not (tmp_path / "student.pt2").exists()


@pytest.mark.slow
def test_a_hub_is_written_dry_and_refuses_in_sentences(small: Run, tmp_path: Path, hub: Any) -> None:
    dry = export_student(small, settings("hub:me/tiny", out=str(tmp_path), dry_run=True))["targets"]["hub"]
    assert dry["uploaded"] is False
    assert hub.asked == []
    assert 'load_student("me/tiny")' in (tmp_path / "hub" / "README.md").read_text()
    for status, advice in ((401, "Log in first"), (403, "write access"), (404, "organization"), (500, "later")):
        hub.status = status
        figures = export_student(small, settings("hub:me/tiny", out=str(tmp_path)))["targets"]["hub"]
        assert f"HTTP {status}" in figures["failed"]
        assert advice in figures["failed"]
    hub.stop()
    figures = export_student(small, settings("hub:me/tiny", out=str(tmp_path)))["targets"]["hub"]
    assert "cannot be reached" in figures["failed"]
    assert (tmp_path / "hub" / "student.safetensors").is_file()


class FakeHub:
    """A hub on 127.0.0.1 that answers every request with one status."""

    def __init__(self) -> None:
        import http.server
        import threading

        self.status, self.asked = 500, list[str]()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                outer.asked.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(outer.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST = do_PUT = do_HEAD = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    import huggingface_hub

    fake = FakeHub()
    address = f"http://127.0.0.1:{fake.server.server_address[1]}"

    def api(**_: Any) -> Any:
        return plain(endpoint=address, token="hf_nobody")

    plain = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield fake
    fake.stop()


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("onx", "Did you mean 'onnx'?"),
        ("onnx,onnx", "each once"),
        ("hub", "write hub:ORG/NAME"),
        ("onnx:x", "write onnx."),
        ("hub:", "write hub:ORG/NAME"),
    ],
)
def test_targets_that_do_not_exist(to: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        settings(to)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.needs])
def test_a_missing_package_stops_before_anything_is_written(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    target = TARGETS[name]
    sentence = rf"'{name}' needs {target.needs[0]}: pip install 'understudy\[{target.extra}\]'"
    with pytest.raises(MissingDependency, match=sentence):
        export_student(small, settings(f"folder,{name}", out=str(tmp_path)))
    assert not any(tmp_path.iterdir())


def test_no_run_no_images_and_a_foreign_record(small: Run, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no run folder"):
        export_student(Run(tmp_path / "nowhere"), settings("folder"))
    run = make_student(tmp_path / "bare")
    run.config_path.unlink()
    with pytest.raises(StoreError, match="--data FOLDER"):
        export_student(run, settings("folder"))
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "export.json", [1])
    with pytest.raises(StoreError, match="is not what an export wrote"):
        export_student(small, settings("folder", out=str(tmp_path / "out")))


def test_every_target_is_declared_whole() -> None:
    for name, target in TARGETS.items():
        assert target.name == name
        assert target.__doc__
        assert target.place
        assert target.runtime
        assert bool(target.needs) == bool(target.extra)


def test_cosines_are_seen_from_the_middle() -> None:
    rng = np.random.default_rng(0)
    rows = 100 + rng.normal(size=(50, 8))
    other = 100 + rng.normal(size=(50, 8))
    figures = compared(other.astype(np.float32), rows.astype(np.float32), None)
    assert figures["cosine_mean"] > 0.999  # all point one way
    assert abs(figures["centered_cosine_mean"]) < 0.2
    assert np.allclose(centered_cosines(rows, rows), 1)


def test_encode_reads_what_training_reads(small: Run, tmp_path: Path) -> None:
    student = load_student(small)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, (40 + n, 50, 3), np.uint8) for n in range(5)]
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    done: list[tuple[int, int]] = []
    rows = student.encode(paths, batch_size=2, progress=lambda *now: done.append(now))
    assert rows.shape == (5, 24)
    assert done == [(2, 5), (4, 5), (5, 5)]
    for given in (arrays, [Image.fromarray(array) for array in arrays], str(tmp_path), [str(path) for path in paths]):
        assert np.allclose(student.encode(given), rows, atol=1e-5)
    assert np.allclose(student.encode(paths[0]), rows[0], atol=1e-5)
    assert np.allclose(np.linalg.norm(student.encode(paths, normalize=True), axis=1), 1, atol=1e-5)


def test_a_student_is_saved_and_found_by_the_mixin(small: Run, tmp_path: Path) -> None:
    from understudy.models.student import Student

    student = load_student(small)
    student.save_pretrained(tmp_path / "saved")
    again = Student.from_pretrained(tmp_path / "saved")
    assert again.metadata == student.metadata
    ours, theirs = load_file(small.weights_path), load_file(tmp_path / "saved" / "student.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert os.path.exists(tmp_path / "saved" / "README.md")
