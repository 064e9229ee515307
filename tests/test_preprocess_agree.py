"""The floors keep models and data apart, so each has its own center crop: these are the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.models.contract import Contract
from understudy.sources.decode import center


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("size", "crop"), [(32, 1.0), (32, 0.875), (45, 0.95), (64, 0.954)])
@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (101, 60), (7, 90)])
def test_contract_and_view_center_agree(interpolation: str, size: int, crop: float, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    contract = Contract(size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), interpolation, crop)
    cropped = torch.from_numpy(np.array(center(image, size, crop, interpolation))).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(contract.preprocess(image)[None], contract.prepare(cropped), rtol=0, atol=1e-6)
