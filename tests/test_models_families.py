"""Spec strings: what they build, with which contract, and what is refused in which words."""

from __future__ import annotations

import http.server
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch import nn

from understudy.errors import MissingDependency, ModelError
from understudy.models.contract import IMAGENET_MEAN, IMAGENET_STD, Contract
from understudy.models.encoder import build_encoder
from understudy.models.families import FAMILIES
from understudy.models.families.timm import published
from understudy.models.teacher import build_teacher


@pytest.mark.parametrize(
    ("spec", "size", "width"),
    [
        ("timm:resnet18", 64, 512),
        ("timm:test_resnet.r160_in1k", 64, 96),
        ("timm:test_vit", 64, 64),
        ("timm:mobilenetv3_small_050", 64, 1024),
        ("torchvision:resnet18", 64, 512),
        ("torchvision:mobilenet_v3_small", 64, 1024),
        ("torchvision:efficientnet_b0", 64, 1280),
        ("torchvision:convnext_tiny", 64, 768),
        ("small:resnet8x0.5", 32, 32),
    ],
)
def test_students_end_in_pooled_features(spec: str, size: int, width: int) -> None:
    encoder = build_encoder(spec, pretrained=False, image_size=size)
    assert (encoder.width, encoder.contract.size) == (width, size)
    assert encoder.contract.crop == 1.0
    assert (encoder.fingerprint, encoder.weights) == ("", "")
    assert encoder.module.training
    with torch.no_grad():
        assert encoder.module.eval()(torch.rand(2, 3, size, size)).shape == (2, width)


def test_the_contract_is_the_networks_own_and_flags_override_it() -> None:
    import timm

    config = timm.get_pretrained_cfg("test_vit")
    own = build_encoder("timm:test_vit", pretrained=False).contract
    assert own == Contract(config.input_size[1], config.mean, config.std, config.interpolation, config.crop_pct)
    flagged = build_encoder(
        "timm:test_vit", pretrained=False, image_size=96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
    ).contract
    assert (flagged.size, flagged.mean, flagged.std) == (96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert build_encoder("small:resnet8", pretrained=False).contract == Contract(
        32, IMAGENET_MEAN, IMAGENET_STD, "bicubic", 1.0
    )
    assert build_encoder("torchvision:resnet18", pretrained=False).contract.crop == 0.875


def test_a_network_that_was_trained_on_squashed_images_sees_such(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    own = timm.data.resolve_model_data_config
    monkeypatch.setattr(timm.data, "resolve_model_data_config", lambda model: {**own(model), "crop_mode": "squash"})
    assert build_encoder("timm:test_vit", pretrained=False).contract.fit == "squash"


@pytest.mark.slow
def test_a_dinov2_at_224_pixels_is_timms_own(shared: Path) -> None:
    """Real weights: 518 pixels in the file, position embeddings resampled, timm's own transforms."""
    import timm
    from safetensors.torch import load_file

    file = shared / "weights" / "vit_small_patch14_dinov2_form.safetensors"
    teacher = build_teacher(f"timm:vit_small_patch14_dinov2@{file}", image_size=224)
    assert "missing: none; position embeddings resampled from 518 to 224 pixels" in teacher.weights
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    model.load_state_dict(load_file(file), strict=False)
    model.set_input_size(224)
    images = [Image.open(path) for path in sorted((shared / "data" / "imagenette" / "val").rglob("*.JPEG"))[:4]]
    data = {**timm.data.resolve_model_data_config(model), "input_size": (3, 224, 224), "crop_pct": 1.0}
    pixels = torch.stack([timm.data.create_transform(**data)(image.convert("RGB")) for image in images])
    with torch.no_grad():
        expected = model.eval()(pixels)
    ours = teacher.features(torch.stack([teacher.contract.preprocess(image) for image in images]))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_vit_with_local_weights_is_resampled_to_another_size(tmp_path: Path) -> None:
    """Weights are loaded at the size they were trained at; only then are position embeddings resampled."""
    source = build_encoder("timm:test_vit", pretrained=False).module
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    teacher = build_encoder(f"timm:test_vit@{tmp_path / 'vit.pth'}", pretrained=True, image_size=96)
    assert teacher.fingerprint and "missing: none" in teacher.weights
    assert teacher.module.pos_embed.shape[1] < source.pos_embed.shape[1]
    assert torch.equal(teacher.module.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("spec", ["timm:test_vit", "timm:vit_tiny_patch16_224", "torchvision:vit_b_32"])
def test_position_embeddings_are_taken_at_the_grid_of_the_file(tmp_path: Path, spec: str) -> None:
    """Asked for at that size they are the file's, at another they are resampled from it, never left random."""
    source = build_encoder(spec, pretrained=False, image_size=128).module
    name = next(name for name in source.state_dict() if "pos_embed" in name)
    state = {key: torch.rand_like(tensor) for key, tensor in source.state_dict().items()}
    torch.save(state, tmp_path / "vit.pth")
    there = build_encoder(f"{spec}@{tmp_path / 'vit.pth'}", pretrained=True, image_size=128)
    assert torch.equal(there.module.state_dict()[name], state[name])
    state[name][:] = 0.25  # a grid of one value is that value at any size
    torch.save(state, tmp_path / "vit.pth")
    for pretrained in (True, False):
        other = build_encoder(f"{spec}@{tmp_path / 'vit.pth'}", pretrained=pretrained, image_size=192)
        found = other.module.state_dict()[name]
        assert found.shape[1] != state[name].shape[1]
        torch.testing.assert_close(found, torch.full_like(found, 0.25))
        assert "missing: none; position embeddings resampled from 128 to 192 pixels" in other.weights
    own = build_encoder(f"{spec}@{tmp_path / 'vit.pth'}", pretrained=True)
    torch.testing.assert_close(own.module.state_dict()[name], torch.full_like(own.module.state_dict()[name], 0.25))


def test_patches_of_another_size_are_refused(tmp_path: Path) -> None:
    """A patch-14 embedding in a patch-16 model: 224 pixels of either kind, and 256 patches of the one are 16 x 16."""
    import timm

    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=224, patch_size=14)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(
        ModelError, match="patch_embed.proj.weight is 192 x 3 x 14 x 14 in the file and 192 x 3 x 16 x 16"
    ):
        build_encoder(f"timm:vit_tiny_patch16_224@{tmp_path / 'vit.pth'}", pretrained=True)


def test_torchvision_weights_load_into_timm_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = build_encoder("torchvision:resnet18", pretrained=False, image_size=64)
    torch.save(theirs.module.state_dict(), tmp_path / "weights.pth")
    ours = build_encoder(f"timm:resnet18@{tmp_path / 'weights.pth'}", pretrained=False, image_size=64)
    back = build_encoder(f"torchvision:resnet18@{tmp_path / 'weights.pth'}", pretrained=True, image_size=64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.module.eval()(images)
        torch.testing.assert_close(ours.module.eval()(images), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(back.module.eval()(images), expected)
    # The same weights under another architecture's name are another teacher.
    assert ours.fingerprint != back.fingerprint


def test_the_fingerprint_follows_the_weights_and_not_their_file_name(tmp_path: Path) -> None:
    state = build_encoder("small:resnet8", pretrained=False).module.state_dict()
    for name in ("a.pth", "b.pth"):
        torch.save(state, tmp_path / name)
    first, same = (build_encoder(f"small:resnet8@{tmp_path / name}", pretrained=True) for name in ("a.pth", "b.pth"))
    state["conv1.weight"][0] += 1e-3
    torch.save(state, tmp_path / "b.pth")
    assert first.fingerprint == same.fingerprint
    assert first.fingerprint != build_encoder(f"small:resnet8@{tmp_path / 'b.pth'}", pretrained=True).fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tim:resnet18", "Did you mean 'timm'"),
        ("resnet18", "PREFIX:NAME"),
        ("timm:", "PREFIX:NAME"),
        ("timm:resnet19", r"timm has no model 'resnet19'\. Nearest: .*resnet18"),
        ("timm:resnet50.a1_in2k", r"Nearest: .*resnet50\.a1_in1k"),
        ("torchvision:resnet19", "Nearest: .*resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no image encoder"),
        ("torchvision:squeezenet1_0", "does not end in a linear classifier"),
        ("small:resnet21", "small:resnet21"),
        ("small:resnet8@none.pth", "none.pth does not exist"),
        ("onnx:none.onnx", "none.onnx does not exist"),
        ("python:json", "python:module:callable"),
        ("python:no_such_module:net", "no Python module 'no_such_module'"),
        ("python:json:no_such_name", "no_such_name"),
        ("python:json:JSONDecoder", "returned a JSONDecoder"),
    ],
)
def test_unknown_specs_are_sentences(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_encoder(spec, pretrained=False)


def test_every_documented_prefix_is_an_entry() -> None:
    assert set(FAMILIES) == {"timm", "torchvision", "hf", "open_clip", "onnx", "run", "small", "python"}


def test_a_student_may_start_from_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    asked = []

    def create(name: str, *, pretrained: bool, num_classes: int) -> nn.Module:
        asked.append(pretrained)
        return original(name, pretrained=False, num_classes=num_classes)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: None)  # no hub is asked whether it answers
    encoder = build_encoder("timm:test_vit@pretrained", pretrained=False)
    assert asked == [True] and encoder.weights.startswith("timm's published weights") and encoder.fingerprint
    assert (encoder.spec, encoder.architecture) == ("timm:test_vit@pretrained", "timm:test_vit")
    with pytest.raises(
        ModelError, match="timm:, torchvision:.* and .*: publish weights, small: does not.*small:resnet8@FILE"
    ):
        build_encoder("small:resnet8@pretrained", pretrained=False)


def test_sizes_a_network_cannot_take_show_both_numbers() -> None:
    with pytest.raises(ModelError, match="65 x 65"):
        build_encoder("timm:test_vit", pretrained=False, image_size=65)
    with pytest.raises(ModelError, match="224 x 224 images, not 96 x 96"):
        build_encoder("timm:levit_128s", pretrained=False, image_size=96)


@pytest.mark.parametrize("spec", ["small:resnet8", "timm:test_vit_nothing_published"])
def test_a_teacher_without_weights_is_refused(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    if "nothing" in spec:  # A real name whose published weights we take away: which ones timm lacks changes.
        spec = "timm:test_vit"
        monkeypatch.setattr(timm.models, "is_model_pretrained", lambda name: False)
    with pytest.raises(ModelError, match=f"{spec}@FILE"):
        build_encoder(spec, pretrained=True)


def test_without_a_network_the_sentence_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants
    import torch.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="could not be downloaded.*timm:test_vit@FILE"):
        build_encoder("timm:test_vit", pretrained=True)

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="Name or service not known.*torchvision:resnet18@FILE"):
        build_encoder("torchvision:resnet18", pretrained=True)


class Hub(http.server.BaseHTTPRequestHandler):
    """Has nothing, and takes a second to say so."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        time.sleep(1)
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


def test_a_hub_out_of_reach_is_a_sentence_in_seconds_and_a_slow_one_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants
    import timm

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    built = []
    monkeypatch.setattr(timm, "create_model", lambda name, **_: built.append(name) or nn.Identity())
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/{{filename}}")
    answering = threading.Thread(target=server.serve_forever)
    answering.start()
    published("test_vit")
    assert built == ["test_vit"] and len(Hub.asked) == 1 and "timm/test_vit" in Hub.asked[0]
    server.shutdown()
    answering.join()
    server.server_close()  # now nobody listens there
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"timm:test_vit could not be downloaded \(.*timm:test_vit@FILE"):
        build_encoder("timm:test_vit", pretrained=True)
    assert time.monotonic() - begun < 20 and built == ["test_vit"]  # the client alone takes 46 seconds
    # A copy that it left is taken without asking.
    snapshot = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    published("test_vit")
    assert built == ["test_vit"] * 2


MODULE = """
import torch
from understudy.models.contract import Contract

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)
    def forward(self, x):
        return self.layer(x.mean((2, 3)))

def with_contract():
    net = Net()
    net.contract = {"size": 20, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    return net

class Map(Net):
    def forward(self, x):
        return x
"""


def test_a_module_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_encoder.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    encoder = build_encoder("python:users_encoder:with_contract", pretrained=True)
    assert (encoder.width, encoder.contract) == (5, Contract(20, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    plain = build_encoder("python:users_encoder:Net", pretrained=True)
    assert plain.contract.size == 224 and "ImageNet's mean and std at 224 pixels assumed" in plain.weights
    torch.save(encoder.module.state_dict(), "own.pth")
    filled = build_encoder("python:users_encoder:Net@own.pth", pretrained=True)
    assert torch.equal(filled.module.layer.weight, encoder.module.layer.weight)
    with pytest.raises(ModelError, match=r"pooled features \(1, F\); it gives \(1, 3, 224, 224\)"):
        build_encoder("python:users_encoder:Map", pretrained=False)
    assert sys.path == before


def test_probing_the_width_leaves_no_trace() -> None:
    encoder = build_encoder("small:resnet8", pretrained=False)
    norms = [module for module in encoder.module.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 0 for norm in norms)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    first = build_encoder("small:resnet8", pretrained=False).module.conv1.weight
    torch.manual_seed(1)
    second = build_encoder("small:resnet8", pretrained=False).module.conv1.weight
    torch.set_rng_state(state)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("package", "spec", "extra"),
    [("transformers", "hf:org/net", "hf"), ("open_clip", "open_clip:ViT-B-32/openai", "clip")],
)
def test_a_missing_extra_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, package: str, spec: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"need {package}: pip install 'understudy\[{extra}\]'"):
        build_encoder(spec, pretrained=True)
