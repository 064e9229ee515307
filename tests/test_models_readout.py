"""`--teacher-output` and `--teacher-size`: the library's own tokens, another teacher, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from understudy.artifacts import Run
from understudy.cli import main
from understudy.errors import ModelError
from understudy.evaluate.runner import _teacher_of
from understudy.models.encoder import build_encoder
from understudy.models.outputs import POOLED, forward_outputs, read_out, require_outputs
from understudy.models.settings import TeacherSettings
from understudy.models.teacher import build_teacher
from understudy.pipeline import teacher_of
from understudy.train.finish import teacher_metadata


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec of a small transformer of timm its weights far from a random initialization."""
    torch.manual_seed(0)
    module = build_encoder("timm:test_vit", pretrained=False).module
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    file = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(module.state_dict(), file)
    return f"timm:test_vit@{file}"


def images(size: int) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_the_outputs_are_made_of_the_tokens_behind_the_last_norm(vit: str) -> None:
    network = build_teacher(vit).module
    x = images(160)
    with torch.no_grad():
        tokens = network.forward_features(x)
        prefix = network.num_prefix_tokens
        expected = {"cls": tokens[:, 0], "patch-mean": tokens[:, prefix:].mean(1)}
        expected["cls+patch-mean"] = torch.cat(list(expected.values()), 1)
        expected["norm"] = expected["cls"]
        answers = {
            name: build_teacher(vit, output=name).features(x) for name in ("cls", "patch-mean", "cls+patch-mean")
        }
    for name, answer in answers.items():
        torch.testing.assert_close(answer, expected[name])
    assert answers["cls+patch-mean"].shape == (3, 2 * tokens.shape[2])


def test_another_output_is_another_teacher_and_says_so(vit: str) -> None:
    own, cls, mean = (build_teacher(vit, output=name) for name in (POOLED, "cls", "patch-mean"))
    assert len({own.fingerprint, cls.fingerprint, mean.fingerprint}) == 3
    assert mean.weights == f"{own.weights}; embedding: patch-mean"
    assert (own.output, mean.output) == ("pooled", "patch-mean")
    settings = TeacherSettings(vit, image_size=96, output="patch-mean")
    small = teacher_of(settings, torch.device("cpu"))
    assert small.contract.size == 96 and small.output == "patch-mean"
    assert "position embeddings resampled from 160 to 96 pixels" in small.weights
    assert small.fingerprint not in (own.fingerprint, mean.fingerprint)


def test_methods_that_compare_tokens_find_them_in_a_network_read_out_otherwise(vit: str) -> None:
    teacher = build_teacher(vit, output="patch-mean")
    require_outputs(teacher.module, vit, attention=False)
    shown = teacher.forward_outputs(images(160))
    torch.testing.assert_close(shown.embedding, teacher(images(160)))
    assert shown.tokens is not None
    torch.testing.assert_close(shown.tokens.mean(1), shown.embedding)


def test_a_part_of_any_network_can_be_the_embedding(tmp_path: Path) -> None:
    module = build_encoder("torchvision:resnet18", pretrained=False, image_size=64).module.eval()
    read = read_out(module, "avgpool", "it")
    x = images(64)
    with torch.no_grad():
        torch.testing.assert_close(read(x), module(x))
        with pytest.raises(ModelError, match=r"The part 'layer4' puts out \(3, 512, 2, 2\) for 3 images"):
            read_out(module, "layer4", "it")(x)
    with pytest.raises(ModelError, match=r"it has no output 'avgpol': it is none of pooled, cls.*Nearest: avgpool"):
        read_out(module, "avgpol", "it")
    with pytest.raises(ModelError, match=r"has no tokens, of which cls could be made \(it is a ResNet\)"):
        read_out(module, "cls", "it")
    transformer = build_encoder("torchvision:vit_b_32", pretrained=False, image_size=64).module.eval()
    with torch.no_grad():
        torch.testing.assert_close(read_out(transformer, "cls", "it")(x), transformer(x))


def test_without_a_class_token_there_is_none_to_take() -> None:
    import timm

    module = timm.create_model("vit_base_patch16_siglip_224", img_size=32, embed_dim=24, depth=1, num_heads=3)
    with pytest.raises(ModelError, match="it has no class token. Take --teacher-output patch-mean"):
        read_out(module, "cls", "it")


def test_a_norm_behind_the_pooling_stays_there() -> None:
    import timm

    torch.manual_seed(0)
    module = timm.create_model("test_vit", img_size=32, num_classes=0, global_pool="avg").eval()
    assert isinstance(module.fc_norm, nn.LayerNorm)
    x = images(32)
    with torch.no_grad():
        torch.testing.assert_close(read_out(module, "patch-mean", "it")(x), module(x))
        assert forward_outputs(read_out(module, "patch-mean", "it"), x).embedding.shape == (3, 64)


def test_a_model_is_evaluated_at_a_size_and_by_an_output(
    vit: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {}

    def build(spec: str, **options: object) -> None:
        asked.update(options, spec=spec)
        raise ModelError("seen")

    monkeypatch.setattr("understudy.evaluate.runner.build_teacher", build)
    flags = ["--teacher-size", "96", "--teacher-output", "cls", "--device", "cpu"]
    assert main(["evaluate", vit, "--eval-data", "digits", *flags]) == 1
    assert (asked["spec"], asked["image_size"], asked["output"]) == (vit, 96, "cls")
    assert capsys.readouterr().err.endswith("seen\n")


def test_a_runs_teacher_is_rebuilt_at_its_size_and_by_its_output(vit: str, tmp_path: Path) -> None:
    built = build_teacher(vit, image_size=96, output="patch-mean")
    again = _teacher_of(Run(tmp_path), teacher_metadata(built), torch.device("cpu"), None)
    assert (again.fingerprint, again.contract, again.output) == (built.fingerprint, built.contract, "patch-mean")
