"""Input contracts: against torchvision's own transforms, and every value that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.errors import ModelError, ShapeError, UnreadableImage
from understudy.models.contract import Contract


def photograph(height: int, width: int) -> Image.Image:
    """Smooth content with some texture, so that resampling has something to do."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 7) + np.cos(y / 5), np.sin((x + y) / 9), np.cos(x * y / 300)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.2, waves.shape)
    return Image.fromarray((127 + 50 * (waves + noise)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize(
    ("shape", "size", "crop"), [((80, 120), 48, 0.875), ((121, 75), 64, 1.0), ((40, 40), 64, 0.95)]
)
def test_preprocess_is_torchvisions(interpolation: str, shape: tuple[int, int], size: int, crop: float) -> None:
    from torchvision import transforms

    contract = Contract(size, interpolation=interpolation, crop=crop)
    theirs = transforms.Compose(
        [
            transforms.Resize(round(size / crop), transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(contract.mean, contract.std),
        ]
    )
    image = photograph(*shape)
    torch.testing.assert_close(contract.preprocess(image), theirs(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_prepare_is_torchvisions(interpolation: str) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    images = torch.rand(2, 3, 40, 40)
    contract = Contract(24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1), interpolation)
    resized = F.resize(images, [24, 24], InterpolationMode(interpolation), antialias=True).clamp(0, 1)
    expected = F.normalize(resized, list(contract.mean), list(contract.std))
    torch.testing.assert_close(contract.prepare(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_prepare_resizes_as_preprocess_does(interpolation: str) -> None:
    """The teacher sees nearly the same pixels whether its input comes from a file or from a view of another size."""
    image = photograph(64, 64)
    contract = Contract(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation)
    view = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    # PIL works in 8 bits: half a gray level of rounding in each of its two passes. Lanczos is bicubic on tensors.
    levels = 6 if interpolation == "lanczos" else 1.1
    torch.testing.assert_close(contract.prepare(view)[0], contract.preprocess(image), rtol=0, atol=levels / 255)


def test_prepare_leaves_the_right_size_alone() -> None:
    images = torch.rand(2, 3, 16, 16)
    contract = Contract(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert torch.equal(contract.prepare(images), images)
    assert contract.prepare(images.to(memory_format=torch.channels_last)).is_contiguous(
        memory_format=torch.channels_last
    )
    assert contract.prepare(images.double()).dtype == torch.float64


def test_prepare_works_in_training_after_inference_mode() -> None:
    contract = Contract(8, (0.11, 0.12, 0.13), (0.2, 0.2, 0.2))
    with torch.inference_mode():
        contract.prepare(torch.rand(1, 3, 8, 8))
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    contract.prepare(images).sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 5.0))


@pytest.mark.parametrize(
    "images", [torch.rand(3, 8, 8), torch.rand(2, 1, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]
)
def test_prepare_refuses_other_shapes(images: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=str(tuple(images.shape)).replace("(", r"\(").replace(")", r"\)")):
        Contract(8).prepare(images)


def test_table_round_trip() -> None:
    contract = Contract(96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.95)
    assert Contract.from_table(contract.table()) == contract
    assert Contract.from_table({"size": [32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]}) == Contract(
        32, (0, 0, 0), (1, 1, 1)
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"size": 32, "mean": [0, 0, 0]}, "std missing"),
        ({"size": [32, 48], "mean": [0, 0, 0], "std": [1, 1, 1]}, "32 x 48"),
        ({"size": 32, "mean": [0, 0], "std": [1, 1, 1]}, "three numbers"),
        ({"size": 32, "mean": [0, 0, 0], "std": [1, 0, 1]}, "positive"),
        ({"size": "large", "mean": [0, 0, 0], "std": [1, 1, 1]}, "could not convert|invalid literal"),
        ({"size": None, "mean": [0, 0, 0], "std": [1, 1, 1]}, "NoneType"),
        ({"size": [], "mean": [0, 0, 0], "std": [1, 1, 1]}, "must be square"),
        ({"size": 1e400, "mean": [0, 0, 0], "std": [1, 1, 1]}, "infinity"),
        ({"size": 32, "mean": 0.5, "std": [1, 1, 1]}, "numbers for size, mean"),
        ({"size": 32, "mean": ["a", 0, 0], "std": [1, 1, 1]}, "numbers for size, mean"),
        ({"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "crop": {}}, "numbers for size, mean"),
        ({"size": 10**6, "mean": [0, 0, 0], "std": [1, 1, 1]}, "at most 4096; got 1000000"),
        ({"size": 0, "mean": [0, 0, 0], "std": [1, 1, 1]}, "got 0"),
        ({"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "crop": 1.5}, "got 1.5"),
        ({"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "cubic"}, "Did you mean 'bicubic'"),
    ],
)
def test_unusable_contracts_are_sentences(table: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Contract.from_table(table)


@pytest.mark.parametrize(
    ("mean", "std", "divided"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "mean 0.485,0.456,0.406 and std 0.229,0.224,0.225"),
        ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), "mean 0.5,0.5,0.5 and std 0.5,0.5,0.5"),
        ((0.485, 0.456, 0.406), (58.395, 57.12, 57.375), "mean 0.485,0.456,0.406 and std 0.229,0.224,0.225"),
        ((0, 0, 0), (255, 255, 255), "mean 0,0,0 and std 1,1,1"),
        ((102, 102, 102), (1, 1, 1), "mean 0.4,0.4,0.4 and std 0.00392157,0.00392157,0.00392157"),
        ((102, 102, 102), (0.2, 0.3, 0.4), "mean 0.4,0.4,0.4 and std 0.2,0.3,0.4"),
        ((0.4, 0.4, 1.5), (0.2, 0.2, 0.2), "mean 0.00156863,0.00156863,0.00588235 and std 0.2,0.2,0.2"),
    ],
)
def test_statistics_of_pixels_up_to_255_are_refused_with_the_divided_ones(
    mean: tuple[float, ...], std: tuple[float, ...], divided: str
) -> None:
    with pytest.raises(ModelError, match=rf"from 0 to 255; here they lie in \[0, 1\]. Divided by 255: {divided}\."):
        Contract(32, mean, std)


def test_unusual_statistics_on_the_right_scale_pass() -> None:
    for mean, std in (
        ((0, 0, 0), (1, 1, 1)),
        ((1, 1, 1), (0.5, 0.5, 0.5)),
        ((0.5,) * 3, (2, 2, 2)),
        ((-1,) * 3, (1,) * 3),
    ):
        assert Contract(32, mean, std).mean == mean


def test_preprocess_takes_what_data_sources_read() -> None:
    image = photograph(20, 20)
    for mode in ("L", "P", "RGBA", "CMYK", "LA", "1", "HSV", "YCbCr", "RGBa", "PA"):
        assert Contract(16).preprocess(image.convert(mode)).shape == (3, 16, 16)
    contract = Contract(20, (0, 0, 0), (1, 1, 1))
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    assert torch.equal(contract.preprocess(deep), contract.preprocess(image.convert("L")))
    with pytest.raises(UnreadableImage, match="the image has 1 x 70,000 pixels"):
        contract.preprocess(Image.new("L", (1, 70_000)))


@pytest.mark.parametrize("size", [(97, 61), (61, 98), (60, 60)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_the_ways_into_a_square_are_those_of_torchvision_and_of_transformers(
    size: tuple[int, int], crop: float
) -> None:
    """Torchvision rounds the place of a crop, transformers rounds it down; squashing keeps no proportions."""
    from torchvision.transforms import v2

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    short = round(32 / crop)
    shorter = v2.functional.resize(image, short, antialias=True)

    def pixels(fit: str) -> np.ndarray:
        tensor = Contract(32, (0, 0, 0), (1, 1, 1), "bilinear", crop, fit).preprocess(image)
        return (tensor.permute(1, 2, 0) * 255).round().byte().numpy()

    assert (pixels("crop") == np.asarray(v2.functional.center_crop(shorter, 32))).all()
    left, top = (shorter.width - 32) // 2, (shorter.height - 32) // 2
    assert (pixels("crop-floor") == np.asarray(shorter.crop((left, top, left + 32, top + 32)))).all()
    squashed = v2.functional.center_crop(v2.functional.resize(image, (short, short), antialias=True), 32)
    assert (pixels("squash") == np.asarray(squashed)).all()


def test_a_table_names_the_way_into_the_square_where_it_is_not_the_usual_one() -> None:
    squash = Contract(32, fit="squash")
    assert squash.table()["fit"] == "squash" and Contract.from_table(squash.table()) == squash
    assert "fit" not in Contract(32).table()
    with pytest.raises(ModelError, match="Unknown way 'squish'.*Did you mean 'squash'"):
        Contract(32, fit="squish")
