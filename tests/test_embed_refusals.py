"""What embedding refuses: bad teachers, images that are none, stores of others, and two writers at once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from test_embed_embedding import (
    HERE,
    SIZE,
    Network,
    one_batch_sample,  # noqa: F401
    photographs,
    pixels,
    teacher_of,
)
from understudy.artifacts import lock
from understudy.embed.embedding import Inference, embed, extract, open_rows
from understudy.errors import ConfigError, DataError, ModelError, StoreError
from understudy.sources.source import open_source


def test_nobody_goes_on_while_a_process_of_a_killed_run_still_writes(tmp_path: Path):
    source = open_source(pixels())
    (orphan,) = {embed(teacher_of(), source, tmp_path).folder}
    (orphan / "manifest.json").unlink()
    with lock(orphan / "blocks", shared=True), pytest.raises(StoreError, match=f"Process {os.getpid()} is writing"):
        embed(teacher_of(), source, tmp_path)
    assert embed(teacher_of(), source, tmp_path).complete


def test_only_one_process_writes_a_store(tmp_path: Path):
    source = open_source(pixels())
    store = embed(teacher_of(), source, tmp_path)
    store.manifest_path.unlink()
    with lock(store.folder), pytest.raises(StoreError, match=f"Process {os.getpid()} is writing"):
        embed(teacher_of(), source, tmp_path)
    assert embed(teacher_of(), source, tmp_path).complete


def test_values_beyond_float16_ask_for_float32(tmp_path: Path):
    source = open_source(pixels())
    with pytest.raises(ConfigError, match=r"beyond float16's largest number 65504\. Store them with --dtype float32"):
        embed(teacher_of(scale=1e7), source, tmp_path)
    assert embed(teacher_of(scale=1e7), source, tmp_path, dtype="float32").embeddings().max() > 65504
    with pytest.raises(ConfigError, match="float16 or float32; got 'int8'"):
        embed(teacher_of(), source, tmp_path, dtype="int8")


def test_bad_teachers_are_refused_before_the_long_way(tmp_path: Path):
    source = open_source(pixels(600))
    seen: list[int] = []
    for scale, sentence in ((float("nan"), "not finite"), (0.0, "same embedding")):
        with pytest.raises(ModelError, match=sentence):
            embed(teacher_of(scale), source, tmp_path, Inference(progress=lambda done, *_: seen.append(done)))
    assert seen == []


def test_nan_on_the_way_names_the_image(tmp_path: Path):
    """One bad image beyond the sample: white, and the encoder divides by its darkness."""
    folder = photographs(tmp_path / "photos")
    Image.fromarray(np.full((SIZE, SIZE, 3), 255, np.uint8)).save(folder / "30.png")

    class Fragile(Network):
        def forward(self, x: Tensor) -> Tensor:
            dark = (x.amax((1, 2, 3), keepdim=True) - x).amax((1, 2, 3))
            flat = x.flatten(2).std(2).amax(1) == 0
            return super().forward(x) + torch.where(flat, torch.nan, dark)[:, None]

    teacher = teacher_of()
    teacher.module = Fragile().requires_grad_(False)
    source = open_source(folder)
    with pytest.raises(ModelError, match=r"1 of 7 images contain NaN or infinity, the first being 30\.png"):
        embed(teacher, source, tmp_path / "stores", HERE)


def test_an_encoder_that_fails_on_the_way_is_a_sentence(tmp_path: Path):
    def fails(x: Tensor) -> None:
        raise RuntimeError("\x1b[31mno room\x1b[0m\nmore")

    with pytest.raises(
        ModelError, match=r"fails on a batch of 8 images \(RuntimeError: no room\)\. If memory is short"
    ):
        embed(teacher_of(before=fails), open_source(pixels(70)), tmp_path)


def test_nothing_readable(tmp_path: Path):
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(5):
        (root / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Not one of the 5 images .*0\.png"):
        embed(teacher_of(), open_source(root), tmp_path / "stores", Inference(workers=0))
    with pytest.raises(DataError, match="Not one of the 5 images"):
        extract(teacher_of().features, teacher_of().contract, open_source(root), Inference(workers=0))


def test_rows_of_another_source_are_refused(tmp_path: Path):
    source = open_source(pixels())
    store = embed(teacher_of(), source, tmp_path)
    with pytest.raises(StoreError, match=r"was made from array \(75 images, .*not from array as it is now \(70 images"):
        open_rows(store, open_source(pixels(70)))
