"""CutMix: the pixels come from where the share says, and the same step mixes the same."""

import pytest
import torch

from understudy.views.masking import cutmix


@pytest.mark.parametrize("step", range(20))
def test_the_share_is_the_area_that_is_still_its_own(step):
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    partner = torch.tensor([1, 2, 3, 0])
    mixed, share = cutmix(images, partner, seed=3, step=step)
    for i in range(4):
        own, pasted = mixed[i] == images[i], mixed[i] == images[partner[i]]
        assert bool((own | pasted).all())
        assert own.float().mean().item() == pytest.approx(share[i].item())
        box = pasted[0].nonzero()
        if len(box):  # one rectangle
            height, width = (box.max(0).values - box.min(0).values + 1).tolist()
            assert height * width == len(box)


def test_a_step_mixes_the_same_again_and_steps_differ():
    images = torch.rand(2, 3, 32, 32)
    partner = torch.tensor([1, 0])
    assert torch.equal(cutmix(images, partner, 1, 5)[0], cutmix(images, partner, 1, 5)[0])
    shares = {cutmix(images, partner, 1, step)[1][0].item() for step in range(30)}
    assert len(shares) > 20


def test_an_image_that_is_its_own_partner_stays():
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(cutmix(images, torch.tensor([0, 1]), 0, 0)[0], images)
