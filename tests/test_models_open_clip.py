"""`open_clip:` against open_clip's own pipeline, for images of odd sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from understudy.errors import ModelError
from understudy.models.dense import dense_features
from understudy.models.encoder import build_encoder
from understudy.models.teacher import build_teacher

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
OWN = {"mean": [0.4, 0.5, 0.3], "std": [0.2, 0.3, 0.25]}

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit": ({"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}, OWN),
    "quick": ({"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT}, {}),
    "resnet": (
        {
            "embed_dim": 24, "text_cfg": TEXT,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        },
        {**OWN, "interpolation": "bilinear"},
    ),
    "timm": (
        {
            "embed_dim": 64, "custom_text": True, "text_cfg": TEXT,
            "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
        },
        {**OWN, "resize_mode": "squash"},
    ),
    "coca": (
        {
            "embed_dim": 24,
            "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
            "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2}, "custom_text": True,
        },
        OWN,
    ),
}  # fmt: skip


def saved(folder: Path, kind: str) -> Any:
    """A small model in a folder as open_clip has it, and that model as open_clip loads it."""
    config, preprocessing = KINDS[kind]
    folder.mkdir(exist_ok=True)
    table = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(table))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}")
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return model.eval()


def photographs() -> list[Image.Image]:
    found = []
    for width, height in ((97, 61), (45, 80), (33, 33), (164, 231)):
        y, x = np.mgrid[0:height, 0:width]
        waves = np.stack([np.sin(x / 7) + np.cos(y / 5), np.sin((x + y) / 9), np.cos(x * y / 300)], axis=-1)
        noise = np.random.default_rng(width).normal(0, 0.2, waves.shape)
        found.append(Image.fromarray((127 + 50 * (waves + noise)).clip(0, 255).astype(np.uint8)))
    return found


def theirs(source: str, **options: Any) -> Tensor:
    model, preprocess = open_clip.create_model_from_pretrained(source, return_transform=True, **options)
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in photographs()])
        answer: Tensor = model.eval().encode_image(pixels, normalize=False)
    return answer


def ours(teacher: Any) -> Tensor:
    answer: Tensor = teacher.features(torch.stack([teacher.contract.preprocess(image) for image in photographs()]))
    return answer


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_is_that_of_the_librarys_own_pipeline(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, kind)
    teacher = build_teacher(f"open_clip:{tmp_path}")
    expected = theirs(f"local-dir:{tmp_path}")
    assert teacher.width == expected.shape[1]
    torch.testing.assert_close(ours(teacher), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_another_size_is_what_the_library_resamples(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, kind)
    size = {"vit": 48, "timm": 96}[kind]
    teacher = build_teacher(f"open_clip:{tmp_path}", image_size=size)
    native = KINDS[kind][0]["vision_cfg"]["image_size"]
    assert f"position embeddings resampled from {native} to {size} pixels" in teacher.weights
    expected = theirs(f"local-dir:{tmp_path}", force_image_size=size)
    torch.testing.assert_close(ours(teacher), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_an_architecture_by_name_with_weights_of_ones_own(tmp_path: Path) -> None:
    saved(tmp_path / "model", "vit")
    (tmp_path / "tiny-of-a-test.json").write_text(json.dumps(KINDS["vit"][0]))
    open_clip.add_model_config(tmp_path / "tiny-of-a-test.json")
    file = tmp_path / "model" / "open_clip_model.safetensors"
    teacher = build_teacher(f"open_clip:tiny-of-a-test@{file}")
    expected = theirs("tiny-of-a-test", pretrained=str(file))
    torch.testing.assert_close(ours(teacher), expected, rtol=1e-4, atol=1e-4)
    assert "missing: none" in teacher.weights
    assert teacher.fingerprint == build_teacher(f"open_clip:{tmp_path / 'model'}").fingerprint
    random = build_encoder("open_clip:tiny-of-a-test", pretrained=False)
    assert (random.weights, random.fingerprint, random.width) == ("", "", 24)


def test_outputs_are_tokens_behind_the_last_norm(tmp_path: Path) -> None:
    model = saved(tmp_path, "vit")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.visual.ln_post(model.visual.transformer(model.visual._embeds(x)))
    for output, expected in (("cls", tokens[:, 0]), ("patch-mean", tokens[:, 1:].mean(1))):
        teacher = build_teacher(f"open_clip:{tmp_path}", output=output)
        torch.testing.assert_close(teacher.features(x), expected, rtol=1e-4, atol=1e-4)
    saved(tmp_path / "resnet", "resnet")
    with pytest.raises(ModelError, match="has no tokens"):
        build_teacher(f"open_clip:{tmp_path / 'resnet'}", output="cls")


@pytest.mark.parametrize("kind", ["vit", "timm", "coca"])
def test_a_student_starts_from_the_weights_and_needs_the_folder_no_more(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "model", kind)
    assert build_encoder(f"open_clip:{tmp_path / 'model'}", pretrained=False).weights == ""
    first = build_encoder(f"open_clip:{tmp_path / 'model'}@pretrained", pretrained=False)
    shutil.rmtree(tmp_path / "model")
    size = first.contract.size
    again = build_encoder(first.architecture, pretrained=False, image_size=size)
    again.module.load_state_dict(first.module.state_dict())
    with torch.no_grad():
        x = torch.randn(2, 3, size, size)
        assert torch.equal(again.module.eval()(x), first.module.eval()(x))


def test_published_weights_come_from_the_hub_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache as the hub's client leaves it, and nobody to ask."""
    import huggingface_hub.constants as constants
    from open_clip import pretrained

    saved(tmp_path / "model", "vit")
    (tmp_path / "tiny-of-a-tag.json").write_text(json.dumps(KINDS["vit"][0]))
    open_clip.add_model_config(tmp_path / "tiny-of-a-tag.json")
    monkeypatch.setitem(
        pretrained._PRETRAINED, "tiny-of-a-tag",
        {
            "mine": {"hf_hub": "org/mine/", "url": "", "quick_gelu": False, **OWN, "resize_mode": "squash"},
            "quick": {"hf_hub": "org/mine/", "url": "", "quick_gelu": True},
        },
    )  # fmt: skip
    known = pretrained._PRETRAINED["tiny-of-a-tag"]
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-of-a-tag-quickgelu", {"quick": known["quick"]})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="org/mine is not in the cache and the hub cannot be reached"):
        build_teacher("open_clip:tiny-of-a-tag/mine")
    snapshot = tmp_path / "cache" / "models--org--mine" / "snapshots" / "abc"
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(tmp_path / "model", snapshot)
    teacher = build_teacher("open_clip:tiny-of-a-tag/mine")
    assert "org/mine at commit abc" in teacher.weights
    assert (teacher.contract.fit, teacher.contract.mean) == ("squash", (0.4, 0.5, 0.3))
    student = build_encoder("open_clip:tiny-of-a-tag/mine@pretrained", pretrained=False)
    assert student.fingerprint == teacher.fingerprint
    for spec, message in (
        ("open_clip:tiny-of-a-tag/quick", "another activation.*Take open_clip:tiny-of-a-tag-quickgelu/quick"),
        ("open_clip:tiny-of-a-tag/mime", "no weights 'mime' of tiny-of-a-tag. Nearest: mine"),
        ("open_clip:tiny-of-a-tag", "names no weights. Published for tiny-of-a-tag: mine, quick"),
    ):
        with pytest.raises(ModelError, match=message):
            build_teacher(spec)


def test_what_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    saved(tmp_path, "vit")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())

    def with_config(text: str) -> str:
        (tmp_path / "open_clip_config.json").write_text(text)
        return f"open_clip:{tmp_path}"

    longest = json.dumps({**config, "preprocess_cfg": {"resize_mode": "longest"}})
    unknown = json.dumps({**config, "model_cfg": {**config["model_cfg"], "vision_cfg": {**VIT, "depth": 3}}})
    larger = json.dumps({**config, "model_cfg": {**config["model_cfg"], "vision_cfg": {**VIT, "layers": 3}}})
    for text, message in (
        (longest, "pads images .resize_mode 'longest'.*not done here"),
        (unknown, "no image tower that open_clip can build .*depth"),
        (larger, "a teacher needs all of them"),
        ("{", "no readable open_clip_config.json"),
        ("[]", "no readable open_clip_config.json"),
    ):
        with pytest.raises(ModelError, match=message):
            build_teacher(with_config(text))
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights: none of open_clip_model.safetensors"):
        build_teacher(with_config(json.dumps(config)))
    with pytest.raises(ModelError, match="no model 'ViT-B-31', and there is no such folder. Nearest: ViT-B-32"):
        build_teacher("open_clip:ViT-B-31/openai")
    saved(tmp_path / "resnet", "resnet")
    with pytest.raises(ModelError, match="cannot be set to images of 96 x 96: it takes exactly .*64"):
        build_teacher(f"open_clip:{tmp_path / 'resnet'}", image_size=96)


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_feature_maps_are_the_patches_tokens(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, kind)
    module = build_encoder(f"open_clip:{tmp_path}@pretrained", pretrained=False).module.eval()
    size, stride = {"vit": ((48, 32), 8.0), "timm": ((96, 64), 16.0)}[kind]
    maps = dense_features(module, size)
    assert (maps.strides, maps.tokens) == ((stride,), True)
    with torch.no_grad():
        tokens = maps.module.forward_features(x := torch.randn(2, 3, *size))
        torch.testing.assert_close(maps(x)[0].flatten(2).mT, tokens[:, 1:])
