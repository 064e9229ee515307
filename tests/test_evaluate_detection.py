"""Detection: AP against cases worked by hand, boxes and masks through the whole path, and a detector that resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from understudy.errors import DataError, StoreError
from understudy.evaluate.datasets.objects import open_objects
from understudy.evaluate.encoded_set import EncodedSet, Figures, Progress
from understudy.evaluate.measures import detector as module
from understudy.evaluate.measures.detector import average_precision, outline_mask
from understudy.evaluate.open_set import open_set
from understudy.evaluate.protocols.detection import Detection, DetectionSettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.models import pyramid
from understudy.models.contract import Contract
from understudy.models.encoder import Encoder
from understudy.models.resnet import small_resnet
from understudy.models.teacher import Teacher


def truth(*boxes: tuple[float, float, float, float], crowd: tuple[int, ...] = ()) -> dict[str, Any]:
    objects = [
        {"id": number, "image_id": 1, "category_id": 5, "bbox": list(box), "area": box[2] * box[3],
         "iscrowd": int(number in crowd)}
        for number, box in enumerate(boxes, 1)
    ]  # fmt: skip
    return {
        "images": [{"id": 1, "width": 200, "height": 200}],
        "annotations": objects,
        "categories": [{"id": 5, "name": "thing"}, {"id": 9, "name": "never there"}],
    }


def found(score: float, *box: float, category: int = 5) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "bbox": list(box), "score": score}


def test_average_precision_by_hand() -> None:
    """AP interpolates precision at the recalls 0, 0.01, ..., 1 and means over the IoUs 0.5, 0.55, ..., 0.95."""
    one = truth((0, 0, 40, 40))
    perfect = average_precision(one, [found(0.9, 0, 0, 40, 40)])
    # 1,600 pixels are medium; of small and large objects there are none to score.
    assert perfect == pytest.approx({"ap": 100.0, "ap50": 100.0, "ap75": 100.0, "ap_medium": 100.0})
    assert average_precision(one, [])["ap"] == 0
    # IoU 25 / 40 = 0.625 passes 0.5, 0.55 and 0.6.
    loose = average_precision(one, [found(0.9, 0, 0, 25, 40)])
    assert (loose["ap"], loose["ap50"], loose["ap75"]) == pytest.approx((30, 100, 0))
    # A better-scored detection of nothing halves the precision; a worse-scored one does not count.
    assert average_precision(one, [found(0.9, 0, 0, 40, 40), found(0.95, 100, 100, 40, 40)])["ap"] == pytest.approx(50)
    assert average_precision(one, [found(0.9, 0, 0, 40, 40), found(0.5, 100, 100, 40, 40)])["ap"] == pytest.approx(100)
    # The same object twice: the second is false.
    two = truth((0, 0, 40, 40), (100, 100, 40, 40))
    twice = [found(0.9, 0, 0, 40, 40), found(0.8, 0, 0, 40, 40), found(0.7, 100, 100, 40, 40)]
    # Recall 0.5 at precision 1 (51 of 101 recalls), then recall 1 at precision 2/3 (the other 50).
    assert average_precision(two, twice)["ap"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    # One of two found: 51 of the 101 recalls.
    assert average_precision(two, twice[:1])["ap"] == pytest.approx(100 * 51 / 101)
    # The right box under the wrong category is nothing.
    assert average_precision(one, [found(0.9, 0, 0, 40, 40, category=9)])["ap"] == 0


def test_sizes_are_areas_of_the_image() -> None:
    three = truth((0, 0, 10, 10), (20, 0, 50, 50), (0, 80, 100, 100))
    hits = [found(0.9, 0, 0, 10, 10), found(0.9, 0, 80, 100, 100)]
    figures = average_precision(three, hits)
    assert (figures["ap_small"], figures["ap_medium"], figures["ap_large"]) == pytest.approx((100, 0, 100))


def test_a_crowd_is_neither_missed_nor_false() -> None:
    crowded = truth((0, 0, 40, 40), (100, 100, 90, 90), crowd=(2,))
    inside = found(0.99, 110, 110, 20, 20)  # 100 % of it lies in the crowd, so it is not judged
    assert average_precision(crowded, [inside, found(0.9, 0, 0, 40, 40)])["ap"] == pytest.approx(100)
    assert average_precision(truth((0, 0, 40, 40)), [inside, found(0.9, 0, 0, 40, 40)])["ap"] == pytest.approx(50)


def test_outlines_become_masks() -> None:
    square = np.zeros((6, 8), np.uint8)
    square[1:4, 2:7] = 1
    assert (outline_mask([[2, 1, 7, 1, 7, 4, 2, 4]], 6, 8) == square).all()
    # Run lengths go down the columns: 13 zeros, then three ones in each of five columns of six.
    assert (outline_mask({"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8]}, 6, 8) == square).all()
    assert (outline_mask([[0, 0, 2, 0, 2, 2, 0, 2], [4, 3, 6, 3, 6, 5, 4, 5]], 6, 8).sum(), square.sum()) == (8, 15)


SHAPES = [[(4, 6, 30, 40)], [(10, 2, 20, 20), (40, 30, 20, 16)], [(0, 0, 64, 48)], [(20, 20, 12, 24)]]


def squares(root: Path) -> Path:
    """Four images with rectangles of two categories whose ids have a gap."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        images, objects = [], []
        for number, shapes in enumerate(SHAPES, 1):
            image = Image.new("RGB", (64, 48), (90, 90, 90))
            for place, (x, y, w, h) in enumerate(shapes):
                ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), ("red", "blue")[place])
                objects.append(
                    {"id": len(objects) + 1, "image_id": number, "category_id": (3, 8)[place], "bbox": [x, y, w, h],
                     "area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
                )  # fmt: skip
            image.save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        categories = [{"id": 3, "name": "red"}, {"id": 8, "name": "blue"}]
        table = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
    return root


class Oracle(nn.Module):
    """Stands in for the detector: sees the rectangles by their colors."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        (image,) = images
        boxes, labels, masks = [], [], []
        for label, channel in ((1, 0), (2, 2)):
            inside = image[channel] > 0.9
            if inside.any():
                rows, columns = torch.where(inside)
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                labels.append(label)
                masks.append(inside[None].float())
        scores = torch.full((len(labels),), 0.9)
        return [{"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels), "scores": scores,
                 "masks": torch.stack(masks)}]  # fmt: skip


def test_what_is_seen_rightly_scores_full_marks_through_the_whole_path(tmp_path: Path) -> None:
    """Pixel to box, label to category id, mask to run lengths: any slip of convention costs AP."""
    _, test = open_objects(squares(tmp_path))
    seen = module._detect(Oracle(), test, True, EncodedSet("teacher", np.empty((0, 0), np.float32)))
    for kind in ("box", "mask"):
        assert average_precision(test.coco(), seen, kind)["ap"] == pytest.approx(100)


def test_learned_targets_and_their_mirror_images(tmp_path: Path) -> None:
    train, _ = open_objects(squares(tmp_path))
    image, target = module._Learned(train, masks=True)[1]
    assert target["labels"].tolist() == [1, 2]
    assert target["boxes"].tolist() == [[10, 2, 30, 22], [40, 30, 60, 46]]
    mirrored, turned = module._flipped(image, target)
    for picture, places in ((image, target), (mirrored, turned)):
        for (x0, y0, x1, y1), mask, channel in zip(
            places["boxes"].int().tolist(), places["masks"], (0, 2), strict=True
        ):
            inside = torch.zeros(48, 64, dtype=torch.uint8)
            inside[y0:y1, x0:x1] = 1
            assert torch.equal(mask, inside)
            assert torch.equal(picture[channel] == 255, inside.bool())
    assert turned["boxes"].tolist() == [[34, 2, 54, 22], [4, 30, 24, 46]]


def test_reader_processes_hand_over_the_same_in_shared_memory(tmp_path: Path) -> None:
    train, _ = open_objects(squares(tmp_path))
    learned = module._Learned(train, masks=True)
    order = list(range(len(learned)))[::-1]
    alone, read = (list(module._stream(learned, order, 2, workers)) for workers in (0, 1))
    assert len(alone) == len(read) > 1
    for here, there in zip(alone, read, strict=True):
        for (image, target), (same, as_well) in zip(here, there, strict=True):
            assert same.is_shared() and not image.is_shared() and torch.equal(image, same)
            assert all(as_well[name].is_shared() and torch.equal(target[name], as_well[name]) for name in target)


def detection(
    network: nn.Module, root: Path, settings: DetectionSettings, folder: Path, progress: Progress | None = None
) -> Figures:
    teacher = Teacher(Encoder(network, 16, Contract(32), "small", "small", "random", "1"))
    nothing = np.empty((0, 0), np.float32)
    target = open_set(f"coco={root}")
    encoded_set = EncodedSet("teacher", nothing, encoder=teacher, dataset=target, folder=folder, progress=progress)
    return Detection.evaluate(encoded_set, EvaluationSettings(detection=settings, seed=3))


@pytest.mark.slow
def test_a_detector_trains_and_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = squares(tmp_path / "data")
    torch.manual_seed(0)
    backbone = small_resnet("resnet8x0.25")
    settings = DetectionSettings(iterations=4, batch_size=1, size=64, rois=4, lr=0.02)
    monkeypatch.setattr(pyramid, "CHANNELS", 16)  # 100 MB of checkpoint less
    learned: list[dict[str, Tensor]] = []
    detect, rate = module._detect, module._rate

    def keep(detector: nn.Module, *others: Any) -> Any:
        learned.append({name: value.clone() for name, value in detector.state_dict().items()})
        return detect(detector, *others)

    def stop(step: int, steps: int) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return rate(step, steps)

    monkeypatch.setattr(module, "_detect", keep)
    notes: list[str] = []
    figures = detection(backbone, data, settings, tmp_path / "a", lambda done, total, note: notes.append(note))
    assert {"box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap_small"} <= set(figures)
    assert (figures["images"], figures["iterations"]) == (4, 4)
    assert any("loss" in note for note in notes)

    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(module, "_rate", stop)
    with pytest.raises(KeyboardInterrupt):
        detection(backbone, data, settings, tmp_path / "b")
    (checkpoint,) = (tmp_path / "b").glob("detectors/*/detector.pt")
    assert torch.load(checkpoint, weights_only=True)["step"] == 2
    monkeypatch.setattr(module, "_rate", rate)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:999] + bytes([content[999] ^ 1]) + content[1000:])
    with pytest.raises(StoreError, match=r"detector\.pt is damaged.*Delete it to train the detector from the start"):
        detection(backbone, data, settings, tmp_path / "b")
    checkpoint.write_bytes(content)
    torch.save({**torch.load(checkpoint, weights_only=True), "step": 10**9}, checkpoint)
    with pytest.raises(StoreError, match=r"step 1000000000 of a training of 4 steps"):
        detection(backbone, data, settings, tmp_path / "b")
    checkpoint.write_bytes(content)
    assert detection(backbone, data, settings, tmp_path / "b") == figures
    assert not checkpoint.exists()  # once scored it is of no more use
    whole, resumed = learned
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert not torch.equal(whole["backbone.body.module.conv1.weight"], backbone.conv1.weight)  # fine-tuned, in a copy


def test_the_schedule_by_hand() -> None:
    shares = [module._rate(step, 90) for step in range(90)]
    assert shares[0] == pytest.approx(0.001) and shares[9] == pytest.approx(1.0)
    assert shares[59] == 1.0 and shares[60] == pytest.approx(0.1) and shares[80] == pytest.approx(0.01)


def test_what_cannot_be_trained_is_a_sentence(tmp_path: Path) -> None:
    data = squares(tmp_path / "data")
    settings = DetectionSettings(iterations=1, batch_size=1, size=64, rois=4)
    table = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    for one in table["annotations"]:
        one["iscrowd"] = 1
    (data / "annotations" / "instances_train2017.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match="none of 4 images has an object that is not a crowd"):
        detection(small_resnet("resnet8x0.25"), data, settings, tmp_path / "a")
    table["categories"].append({"id": 9, "name": "green"})
    (data / "annotations" / "instances_train2017.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"has 3 categories and .* 2, or other ones"):
        detection(small_resnet("resnet8x0.25"), data, settings, tmp_path / "a")
