"""Zero-shot: do texts still find the images?

Each class is a text, or the mean over several templates of its texts, embedded by the text tower of the teacher's own
library; an image belongs to the class whose text is nearest by cosine. The student needs no text tower: if it lands in
the teacher's space, the teacher's texts find its images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from understudy.artifacts import file_fingerprint
from understudy.evaluate.protocol import Display, Protocol, Requirements
from understudy.settings import setting


@dataclass(frozen=True)
class ZeroshotSettings:
    """Where the texts come from."""

    text: str | None = setting(
        None, "FILE.npz with names (C,) and embeddings (C, D) or (C, templates, D); the teacher's text tower otherwise."
    )
    templates: tuple[str, ...] = setting(
        ("a photo of a {}.",), "Comma-separated texts of a class; {} is its name. Their embeddings are averaged."
    )

    def identity(self) -> dict[str, Any]:
        """What decides the figures: the file by its content."""
        return {"text": self.text and file_fingerprint(self.text), "templates": list(self.templates)}


class Zeroshot(Protocol):
    """The nearest text of each image."""

    name = "zeroshot"
    summary = "top-1 and top-5 of class texts, by the teacher's text tower (CLIP, SigLIP) or from a file"
    paper = ("radford2021learning",)
    Settings = ZeroshotSettings
    measure = "zeroshot.nearest_text"
    requirements = Requirements(kinds=frozenset({"labeled"}), space=True)
    display = Display(
        title="Zero-shot",
        sentence="An image belongs to the class whose text, embedded by the teacher's text tower, is nearest by "
        "cosine. The student has no text tower of its own: it is asked with the teacher's texts.",
        source="Radford et al., ICML 2021 (arXiv 2103.00020)",
        compared=(r"top1",),
        quoted=(r"top1", r"top5", r"mean_class"),
        headline=(r"top1",),
    )
