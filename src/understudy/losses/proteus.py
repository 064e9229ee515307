"""Proteus: regress the teacher's class token, all its tokens, and its tokens of patches hidden from the student."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy.errors import ShapeError
from understudy.losses.base import Loss, Requirements, Terms, check_pair, exact_pair
from understudy.settings import setting


class Proteus(Loss):
    """Mean squared differences at three levels, each through a linear map of the student's own.

    - token:   the embeddings, through the student's head;
    - feature: the embeddings and all patch tokens as one sequence, the patches through `feature_head`;
    - patch:   the tokens of the hidden patches, through `patch_head`. In a share of the images the student sees a
      learned token (`mask_token`) in the place of some patches, and must say what the teacher sees there.

    Differs from MSE by the patches. The embedding is the class token wherever a network pools by it, as DINOv2's and
    most others do. The authors' three maps are LayerNorm - Linear, the first of them is the student's head here
    (`head = "norm"`), which is why it has the class token in the feature term too, as in their code. The other maps and
    the mask token belong to the loss: trained with the student, thrown away after training. The student reaches the
    teacher's embeddings themselves, norm included.

    The authors hide patches in the first half of each process' batch; here in every second image, so that the number
    of processes changes nothing. Both networks must cut the view into the same grid of patches.

    Scope: a mean over images, so the same on any number of processes.

    Source:
        ICLR 2025, arXiv 2407.10366; details as in the authors' code, github.com/BeSpontaneous/Proteus-pytorch.
    """

    name = "proteus"
    summary = "the teacher's embedding and patch tokens, of hidden patches too (transformers on both sides)"
    needs = Requirements(tokens=True, masks=True)
    paper = "zhang2025proteus"
    # run_pretrain.sh and main.py of the released code. Not said here: its rate starts at 1e-6 and ends at 1e-5, its
    # views also have RandAugment and random erasing, and each image stands in a batch three times.
    authors = {
        "optimizer.name": "adamw", "optimizer.lr": 5e-4, "optimizer.momentum": 0.9, "optimizer.weight_decay": 0.05,
        "optimizer.schedule": "cosine", "optimizer.warmup": 5.0, "optimizer.every": "epoch", "head": "norm",
        "views.recipe": "crop", "batch_size": 512, "passes": 300.0, "neighbors.k": 0, "method.token": 1.0,
        "method.feature": 1.0, "method.patch": 1.0, "method.probability": 0.5, "method.ratio": 0.5,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        token: float = setting(1.0, "Weight of the embeddings; 1 in the authors' commands, as the others.", minimum=0)
        # The authors set this and the next to 0 for CLIP's teachers, which makes it MSE.
        feature: float = setting(1.0, "Weight of the embeddings and all patch tokens.", minimum=0)
        patch: float = setting(
            1.0, "Weight of the hidden patches; 0 spares the forward pass of images with hidden patches.", minimum=0
        )
        probability: float = setting(0.5, "Share of the images with hidden patches.", minimum=0, maximum=1)
        ratio: float = setting(0.5, "Share of their patches that is hidden.", minimum=0, maximum=1)

    settings: Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.mask_probability, self.mask_ratio = settings.probability, settings.ratio
        if settings.patch == 0:
            self.needs = Requirements(tokens=True)

    def prepare(self, student_width: int, teacher_width: int) -> None:
        """The maps of the patch tokens, and what stands for a hidden patch: 0 at first."""
        self.feature_head = nn.Sequential(nn.LayerNorm(student_width), nn.Linear(student_width, teacher_width))
        if self.needs.masks:
            self.patch_head = nn.Sequential(nn.LayerNorm(student_width), nn.Linear(student_width, teacher_width))
            self.mask_token = nn.Parameter(torch.zeros(student_width))

    def forward(
        self, student: Tensor, teacher: Tensor, student_tokens: Tensor, teacher_tokens: Tensor,
        masked_tokens: Tensor | None = None, masks: Tensor | None = None, masked: Tensor | None = None,
    ) -> Terms:  # fmt: skip
        """Parts "token", "feature" and, with masks, "patch", in squared units of the teacher's tokens, 0 = perfect.

        "patch" is 0 where no patch is hidden. The last three inputs are there unless its weight is 0.
        """
        check_pair(student, teacher)
        _check_tokens(student_tokens, teacher_tokens, student)
        s, t = exact_pair(student, teacher)
        mapped, tokens = exact_pair(_through(self.feature_head, student_tokens), teacher_tokens)
        everything = torch.cat([s[:, None] - t[:, None], mapped - tokens], 1)
        parts = {"token": (s - t).square().mean(), "feature": everything.square().mean()}
        if masked_tokens is not None and masks is not None and masked is not None:
            _check_masks(masked_tokens, masks, masked, student_tokens)
            mapped, tokens = exact_pair(_through(self.patch_head, masked_tokens), teacher_tokens[masked])
            distance = (mapped - tokens).square().mean(2)
            parts["patch"] = (distance * masks).sum() / masks.sum().clamp_min(1)
        return Terms(torch.stack([getattr(self.settings, name) * part for name, part in parts.items()]).sum(), parts)


def _through(head: nn.Sequential, tokens: Tensor) -> Tensor:
    """Tokens through a map, in the type of its parameters whatever the student was computed in."""
    own = next(head.parameters())
    if tokens.shape[2] != len(own):
        raise ShapeError(f"The loss was prepared for a student {len(own)} wide, got tokens {tuple(tokens.shape)}.")
    mapped: Tensor = head(tokens.to(own.dtype))
    return mapped


def _check_tokens(student: Tensor, teacher: Tensor, embedding: Tensor) -> None:
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    images, width = embedding.shape
    if student.ndim != 3 or teacher.ndim != 3 or {len(student), len(teacher)} != {images} or teacher.shape[2] != width:
        raise ShapeError(
            f"Patch tokens must be (B, N, F) and (B, N, D) beside embeddings {tuple(embedding.shape)}, got {shapes}."
        )
    if student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            f"Both networks must cut an image into the same patches, got {student.shape[1]} of the student and "
            f"{teacher.shape[1]} of the teacher. Choose the student's --image-size so that size / patch size is equal."
        )


def _check_masks(tokens: Tensor, masks: Tensor, masked: Tensor, student: Tensor) -> None:
    if tokens.ndim != 3 or tokens.shape[1:] != student.shape[1:] or masks.shape != tokens.shape[:2] or (
        masked.shape != tokens.shape[:1]
    ):  # fmt: skip
        raise ShapeError(
            f"Masked tokens (M, N, F) need masks (M, N) and positions (M,) beside tokens {tuple(student.shape)}, got "
            f"{tuple(tokens.shape)}, {tuple(masks.shape)}, {tuple(masked.shape)}."
        )
