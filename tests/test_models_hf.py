"""`hf:` against transformers' own pipeline: its processor and its model, for images of odd sizes."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from understudy.artifacts import Run
from understudy.errors import ModelError
from understudy.models.dense import dense_features
from understudy.models.encoder import build_encoder
from understudy.models.outputs import read_out
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student, load_student, save_student
from understudy.models.teacher import build_teacher

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
NORMAL = {"image_mean": [0.4, 0.5, 0.3], "image_std": [0.2, 0.3, 0.25]}
SQUASH = {**NORMAL, "size": {"height": 32, "width": 32}}
CROP = {**NORMAL, "size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}

KINDS: dict[str, tuple[str, str, dict[str, Any], str, dict[str, Any]]] = {
    "vit": ("ViTModel", "ViTConfig", SMALL, "ViTImageProcessor", SQUASH),
    "dinov2": ("Dinov2Model", "Dinov2Config", SMALL, "BitImageProcessor", CROP),
    "dinov2_registers": (
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {**SMALL, "num_register_tokens": 3},
        "BitImageProcessor", CROP,
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", SMALL, "DINOv3ViTImageProcessor", SQUASH),
    "clip": (
        "CLIPModel", "CLIPConfig", {"vision_config": SMALL, "text_config": TEXT, "projection_dim": 24},
        "CLIPImageProcessor", CROP,
    ),
    "siglip": (
        "SiglipModel", "SiglipConfig", {"vision_config": SMALL, "text_config": TEXT}, "SiglipImageProcessor", SQUASH,
    ),
    "tips": (
        "Tipsv2Model", "Tipsv2Config", {"vision_config": SMALL, "text_config": TEXT}, "Tipsv2ImageProcessor",
        {"size": {"height": 32, "width": 32}},
    ),
    "mae": ("ViTMAEModel", "ViTMAEConfig", SMALL, "ViTImageProcessor", SQUASH),
    "ijepa": ("IJepaModel", "IJepaConfig", SMALL, "ViTImageProcessor", SQUASH),
    "convnext": (
        "ConvNextModel", "ConvNextConfig", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        "ConvNextImageProcessor", {**NORMAL, "size": {"shortest_edge": 64}, "crop_pct": 0.875},
    ),
    "swin": (
        "SwinModel", "SwinConfig",
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 4},
        "ViTImageProcessor", SQUASH,
    ),
}  # fmt: skip


def perturbed(module: Any) -> Any:
    """Nothing at the value it starts with."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def saved(folder: Path, kind: str) -> Any:
    """A small model with its processor in a folder, and the model."""
    model, config, settings, processor, preprocessing = KINDS[kind]
    module = perturbed(getattr(transformers, model)(getattr(transformers, config)(**settings)))
    module.save_pretrained(folder)
    getattr(transformers, processor)(**preprocessing).save_pretrained(folder)
    return module


def photographs() -> list[Image.Image]:
    found = []
    for width, height in ((97, 61), (45, 80), (33, 33), (64, 131)):
        y, x = np.mgrid[0:height, 0:width]
        waves = np.stack([np.sin(x / 7) + np.cos(y / 5), np.sin((x + y) / 9), np.cos(x * y / 300)], axis=-1)
        noise = np.random.default_rng(width).normal(0, 0.2, waves.shape)
        found.append(Image.fromarray((127 + 50 * (waves + noise)).clip(0, 255).astype(np.uint8)))
    return found


def theirs(folder: Path, module: Any, kind: str, backend: str = "pil") -> Tensor:
    """What transformers itself makes of the photographs."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend)
    rows = []
    for image in photographs():
        pixels = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"])
        with torch.no_grad():
            if hasattr(module, "get_image_features"):
                answer = module.get_image_features(pixel_values=pixels)
            elif kind == "mae":
                module.config.mask_ratio = 0.0
                module.embeddings.config.mask_ratio = 0.0
                answer = module(pixel_values=pixels)
            else:
                answer = module(pixel_values=pixels)
        pooled = answer if isinstance(answer, Tensor) else answer.get("pooler_output")
        if pooled is None:
            states = answer.last_hidden_state
            pooled = states.mean(1) if kind == "ijepa" else states[:, 0]
        rows.append(pooled.flatten(1))
    return torch.cat(rows)


def ours(teacher: Any) -> Tensor:
    pixels = torch.stack([teacher.contract.preprocess(image) for image in photographs()])
    answer: Tensor = teacher.features(pixels)
    return answer


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_is_that_of_the_librarys_own_pipeline(tmp_path: Path, kind: str) -> None:
    module = saved(tmp_path, kind)
    teacher = build_teacher(f"hf:{tmp_path}")
    expected = theirs(tmp_path, module, kind)
    assert teacher.width == expected.shape[1]
    # Two processors know torchvision alone, which rounds resized pixels otherwise than PIL, or (DINOv3's) not at all.
    bound = 2e-2 if kind in ("tips", "dinov3") else 1e-4
    torch.testing.assert_close(ours(teacher), expected, rtol=bound, atol=bound * float(expected.abs().max()))
    assert teacher.fingerprint == build_teacher(f"hf:{tmp_path}").fingerprint


def test_torchvisions_way_to_resize_moves_it_by_rounding_alone(tmp_path: Path) -> None:
    module = saved(tmp_path, "dinov2")
    expected = theirs(tmp_path, module, "dinov2", "torchvision")
    torch.testing.assert_close(ours(build_teacher(f"hf:{tmp_path}")), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "test_resnet.r160_in1k"])
def test_timms_networks_behind_the_wrapper_are_timms(tmp_path: Path, name: str) -> None:
    import timm
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    module = perturbed(timm.create_model(name.partition(".")[0], pretrained=False))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var += torch.rand_like(part.running_var)
    module.pretrained_cfg = {**module.pretrained_cfg, "crop_pct": 0.9}
    save_config_for_hf(module, str(tmp_path / "config.json"))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    encoder = build_teacher(f"hf:{tmp_path}")
    table = json.loads((tmp_path / "config.json").read_text())
    assert table["model_args"].pop("num_classes") == 1000  # which the wrapper itself cannot take
    (tmp_path / "config.json").write_text(json.dumps(table))
    wrapper = transformers.AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(ours(encoder), theirs(tmp_path, wrapper, name), rtol=1e-4, atol=1e-4)
    assert "timm " in encoder.library and encoder.contract.size == 160
    if "vit" in name:
        assert build_teacher(f"hf:{tmp_path}", image_size=96).module.pos_embed.shape[1] == 37
        assert build_teacher(f"hf:{tmp_path}", output="cls").width == encoder.width


def test_another_size_is_what_the_library_interpolates(tmp_path: Path) -> None:
    module = saved(tmp_path, "clip")
    teacher = build_teacher(f"hf:{tmp_path}", image_size=48)
    assert teacher.contract.size == 48 and teacher.contract.crop == pytest.approx(32 / 37)
    assert "its projected embedding; position embeddings resampled from 32 to 48 pixels" in teacher.weights
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = module.get_image_features(pixel_values=x, interpolate_pos_encoding=True)
    expected = expected if isinstance(expected, Tensor) else expected.pooler_output
    torch.testing.assert_close(teacher.features(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="cannot take 4 x 4 images"):
        build_teacher(f"hf:{tmp_path}", image_size=4)


def test_outputs_are_tokens_behind_the_last_norm_and_registers_are_no_patches(tmp_path: Path) -> None:
    module = saved(tmp_path, "dinov2_registers")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = module(pixel_values=x).last_hidden_state
    own, cls, mean = (build_teacher(f"hf:{tmp_path}", output=name) for name in ("pooled", "cls", "patch-mean"))
    torch.testing.assert_close(cls.features(x), tokens[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean.features(x), tokens[:, 4:].mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.features(x), cls.features(x))
    assert len({own.fingerprint, cls.fingerprint, mean.fingerprint}) == 3
    clip = saved(tmp_path / "clip", "clip")
    cls = build_teacher(f"hf:{tmp_path / 'clip'}", output="cls")
    with torch.no_grad():
        pooled = clip.vision_model(pixel_values=x).pooler_output
    torch.testing.assert_close(cls.features(x), pooled, rtol=1e-4, atol=1e-4)
    saved(tmp_path / "siglip", "siglip")
    with pytest.raises(ModelError, match="has no class token. Take --teacher-output patch-mean"):
        build_teacher(f"hf:{tmp_path / 'siglip'}", output="cls")
    saved(tmp_path / "swin", "swin")
    with pytest.raises(ModelError, match="has no tokens, of which cls"):
        build_teacher(f"hf:{tmp_path / 'swin'}", output="cls")


def test_a_classifiers_missing_pooling_layer_is_not_invented(tmp_path: Path) -> None:
    module = perturbed(transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)))
    module.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(**SQUASH).save_pretrained(tmp_path)
    teacher = build_teacher(f"hf:{tmp_path}")
    assert teacher.weights.endswith(", its class token")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = module.vit(pixel_values=x).last_hidden_state[:, 0]
    torch.testing.assert_close(teacher.features(x), expected, rtol=1e-4, atol=1e-4)


def test_the_identity_is_weights_and_configuration_wherever_they_lie(tmp_path: Path) -> None:
    saved(tmp_path / "a", "vit")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, moved = (build_teacher(f"hf:{tmp_path / name}") for name in "ab")
    assert first.fingerprint == moved.fingerprint
    table = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps(table | {"layer_norm_eps": 0.1}))
    assert build_teacher(f"hf:{tmp_path / 'b'}").fingerprint != first.fingerprint


def test_half_precision_files_are_computed_in_float32(tmp_path: Path) -> None:
    saved(tmp_path, "dinov2").half().save_pretrained(tmp_path)
    teacher = build_teacher(f"hf:{tmp_path}")
    assert {parameter.dtype for parameter in teacher.module.parameters()} == {torch.float32}


def test_a_student_starts_from_random_or_published_weights(tmp_path: Path) -> None:
    module = saved(tmp_path, "dinov2")
    random, known = (build_encoder(f"hf:{tmp_path}{at}", pretrained=False) for at in ("", "@pretrained"))
    name = "network.embeddings.cls_token"
    assert (random.weights, random.fingerprint) == ("", "") and known.fingerprint
    assert torch.equal(known.module.state_dict()[name], module.embeddings.cls_token)
    assert not torch.equal(random.module.state_dict()[name], module.embeddings.cls_token)
    assert known.contract == random.contract == build_teacher(f"hf:{tmp_path}").contract
    assert known.module.training


@pytest.mark.parametrize("kind", ["clip", "vit", "convnext", "siglip"])
def test_a_saved_student_needs_its_folder_no_more(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "model", kind)
    first = build_encoder(f"hf:{tmp_path / 'model'}@pretrained", pretrained=False)
    shutil.rmtree(tmp_path / "model")
    again = build_encoder(first.architecture, pretrained=False, image_size=first.contract.size)
    again.module.load_state_dict(first.module.state_dict())
    size = first.contract.size
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(x), first.module.eval()(x))


def test_a_student_comes_back_from_its_run_folder_alone(tmp_path: Path) -> None:
    saved(tmp_path / "model", "vit")
    student = build_student(StudentSettings(f"hf:{tmp_path / 'model'}@pretrained", head="linear"), 8).eval()
    save_student(student, Run(tmp_path), {"method": {}})
    shutil.rmtree(tmp_path / "model")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_student(tmp_path).embed(x), student.embed(x))
    vast = json.dumps({"model_type": "vit", **SMALL, "hidden_size": 2**16, "intermediate_size": 2**20})
    with pytest.raises(ModelError, match="cannot be built .it would have [0-9,]+ parameters, and a student may have"):
        build_encoder(f"hf:{vast}", pretrained=False)


def bert(folder: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(folder)


def naflex(folder: Path) -> None:
    settings = {**{key: SMALL[key] for key in SMALL if key != "image_size"}, "num_patches": 16}
    transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**settings)).save_pretrained(folder)


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        saved(folder, "vit")
        table = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(table | values))

    return apply


def without(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        saved(folder, "vit")
        (folder / name).unlink()

    return apply


def incomplete(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(folder, "vit")
    state = load_file(folder / "model.safetensors")
    state.pop(next(name for name in state if "layernorm" in name or "layer_norm" in name))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


PREPROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bert, "is a BertModel, which needs text"),
        (naflex, "asks for pixel_attention_mask and spatial_shapes: images in tiles or with padding"),
        (change("config.json", model_type="mamba9", auto_map={"AutoModel": "a.B"}), "brings code of its own"),
        (change("config.json", model_type="dinov9"), "of the kind 'dinov9'.*Nearest: .*dinov2"),
        (change(PREPROCESSOR, do_pad=True), r"ViTImageProcessor pads images \(do_pad\)"),
        (change(PREPROCESSOR, do_resize=False), "leaves images at their size"),
        (change(PREPROCESSOR, size={"height": 32, "width": 48}), "height 32, width 48, which is no square"),
        (change(PREPROCESSOR, size={"shortest_edge": 32}), "leaves images in their proportions"),
        (change(PREPROCESSOR, resample=5), "resizes by 'hamming'"),
        (change(PREPROCESSOR, image_mean=[0.5, 0.5]), "ViTImageProcessor has settings that cannot be used"),
        (without(PREPROCESSOR), "no preprocessor_config.json.*Give --teacher-mean and --teacher-std"),
        (without("config.json"), "no readable config.json"),
        (without("model.safetensors"), "weights of hf:.* cannot be loaded"),
        (incomplete, "lack 1 tensors that its ViTModel has.*A teacher needs all"),
    ],
)  # fmt: skip
def test_what_is_not_done_here_is_refused_with_words(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(ModelError, match=message):
        build_teacher(f"hf:{tmp_path}")


def test_names_that_are_no_folder_and_no_revision_say_so(tmp_path: Path) -> None:
    saved(tmp_path, "vit")
    for spec, message in (
        (f"hf:{tmp_path}@v1", "what follows @ is a revision of the hub, and a folder has none"),
        ("hf:./nowhere", "There is no folder ./nowhere; a model of the hub is called ORG/NAME"),
        ("hf:a/b/c", "There is no folder a/b/c"),
    ):
        with pytest.raises(ModelError, match=message):
            build_teacher(spec)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with the files of one folder as org/net, a gated model, and nothing else."""

    folder: ClassVar[Path]
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        code = "GatedRepo" if "org/gated" in path else "RepoNotFound" if "org/net" not in path else ""
        if not code and not path.startswith("/api/models/org/net/tree") and "v9" in path:
            code = "RevisionNotFound"
        files = {file.name: file.read_bytes() for file in sorted(self.folder.iterdir())}
        if code and not (code == "GatedRepo" and path.startswith("/api")):
            self.send_response(403 if code == "GatedRepo" else 404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if "/tree/" in path:
            body = json.dumps(
                [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in files.items()]
            ).encode()
        elif path.startswith("/api"):
            table = {"id": "org/net", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            body = json.dumps(table).encode()
        else:
            body = files[path.rpartition("/")[2]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_a_model_of_the_hub_is_fetched_once_and_its_commit_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    (tmp_path / "files").mkdir()
    saved(tmp_path / "files", "dinov2")
    (tmp_path / "files" / "tf_model.h5").write_bytes(b"not wanted")
    Hub.folder, Hub.asked[:] = tmp_path / "files", []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    answering = threading.Thread(target=server.serve_forever)
    answering.start()
    try:
        teacher = build_teacher("hf:org/net")
        asked = len(Hub.asked)
        assert asked and not any("tf_model" in path for path in Hub.asked)
        assert f"org/net at commit {COMMIT}" in teacher.weights
        assert build_teacher("hf:org/net").fingerprint == teacher.fingerprint and len(Hub.asked) == asked
        assert teacher.fingerprint == build_teacher(f"hf:{tmp_path / 'files'}").fingerprint
        pinned = build_encoder(f"hf:org/net@{COMMIT}", pretrained=False)
        assert pinned.fingerprint and pinned.spec == f"hf:org/net@{COMMIT}"
        for spec, message in (
            ("hf:org/gated", "org/gated is gated: accept its license on its page of the hub, then log in"),
            ("hf:org/nothing", "The hub has no org/nothing, or it is private: check the name, or log in"),
            ("hf:org/net@v9", "org/net has no revision 'v9'"),
        ):
            with pytest.raises(ModelError, match=message):
                build_teacher(spec)
    finally:
        server.shutdown()
        answering.join()
        server.server_close()
    assert build_teacher("hf:org/net").fingerprint == teacher.fingerprint  # with nobody there
    begun = time.monotonic()
    with pytest.raises(ModelError, match="org/other cannot be fetched from the hub"):
        build_teacher("hf:org/other")
    assert time.monotonic() - begun < 15
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="org/other is not in the cache and the hub cannot be reached"):
        build_teacher("hf:org/other")


@pytest.mark.parametrize("kind", ["dinov2_registers", "clip", "siglip"])
def test_feature_maps_are_the_patches_tokens_at_any_size(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, kind)
    module = build_encoder(f"hf:{tmp_path}@pretrained", pretrained=False).module.eval()
    maps = dense_features(module, (48, 32))
    assert (maps.strides, maps.channels, maps.tokens) == ((8.0,), (32,), True)
    x = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        tokens = module.forward_features(x)[:, -24:]
        torch.testing.assert_close(maps(x)[0].flatten(2).mT, tokens)
        assert torch.equal(dense_features(read_out(module, "patch-mean", "it"), (48, 32))(x)[0], maps(x)[0])
