"""The student: a backbone, whose pooled feature is what is used, and a head into the teacher's space."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from jaxtyping import Float, Float32
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from understudy import __version__
from understudy.artifacts import FORMAT, Checksums, Run, atomic, write_json
from understudy.errors import ModelError, StoreError, first_line
from understudy.models.checkpoints import fingerprint_weights
from understudy.models.contract import Contract
from understudy.models.cost import parameters
from understudy.models.encoder import Encoder, build_encoder
from understudy.models.encoding import Progress, encode
from understudy.models.families import parse_spec
from understudy.models.heads import HEADS, build_head, head_multiply_adds
from understudy.models.hub import fetch, is_repository
from understudy.models.outputs import EncoderOutput, forward_outputs
from understudy.models.settings import StudentSettings
from understudy.models.trust import require_trust, trusting

DESCRIBED = frozenset(
    ("format", "understudy", "spec", "architecture", "head", "contract", "width", "embed_dim", "parameters", "weights")
)
"""Keys of student.json that the student itself gives; the others are its history."""


class InverseTransform(nn.Module):
    """The way back from the space that a student was trained in (`embed.transform`): x = scale * y @ matrix + mean.

    The buffers are filled by `train` or by a state dict.
    """

    matrix: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, y: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """(B, D) -> (B, D)."""
        return self.scale * (y @ self.matrix) + self.mean


class Student(nn.Module, ModelHubMixin, library_name="understudy", tags=["understudy", "knowledge-distillation"]):
    """A small encoder that can stand in for its teacher, from `build_encoder` and `build_head` (head and table).

    `from_pretrained`, `save_pretrained` and `push_to_hub` are those of huggingface_hub's `ModelHubMixin`.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, head_table: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone, self.head, self.head_table = encoder.module, head, dict(head_table)
        self.contract, self.spec, self.architecture = encoder.contract, encoder.spec, encoder.architecture
        self.weights, self.width, self.embed_dim = encoder.weights, encoder.width, int(head_table["out"])
        self.code, self.library = encoder.code, encoder.library
        self.inverse_transform = InverseTransform(self.embed_dim) if head_table.get("transform") else nn.Identity()
        # The mixin's own choice, the arguments above, cannot be written as JSON.
        self._hub_mixin_config = {"architecture": encoder.architecture}
        self.metadata: dict[str, Any] = {}  # what student.json says of its training

    def features(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """(B, 3, S, S) prepared -> (B, F): the backbone's pooled feature, what downstream tasks use."""
        features: Tensor = self.backbone(x)
        return features

    def embed(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """(B, 3, S, S) prepared -> (B, D): in the teacher's space."""
        return self.to_teacher_space(self.features(x))

    @property
    def headless(self) -> bool:
        """Whether there is nothing behind the backbone: its features are the embedding."""
        return isinstance(self.head, nn.Identity) and isinstance(self.inverse_transform, nn.Identity)

    def to_teacher_space(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """(B, F) backbone features -> (B, D) in the teacher's space: the second half of `embed`."""
        embedding: Tensor = self.inverse_transform(self.head(features))
        return embedding

    def forward(self, x: Float[Tensor, "B 3 H W"], **requested: Any) -> Float[Tensor, "B D"] | EncoderOutput:
        """What is trained: `embed` without the inverse transform; DDP sees one call, whatever is requested.

        With requests, which are those of `outputs.forward_outputs`, it says what lies under the embedding too.
        """
        if requested:
            output = forward_outputs(self.backbone, x, **requested)
            return replace(output, embedding=self.head(output.embedding))
        embedding: Tensor = self.head(self.features(x))
        return embedding

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """PIL image, as it was opened -> (3, S, S) prepared tensor; see `Contract.preprocess`."""
        return self.contract.preprocess

    def encode(
        self, images: Any, *, batch_size: int = 64, progress: Progress | None = None, normalize: bool = False
    ) -> Float32[np.ndarray, "*N D"]:
        """Images to embeddings in the teacher's space, as the `encode` of sentence-transformers does it for texts.

        Args:
            images: a list of paths, PIL images or uint8 arrays (H, W, 3), in any mixture; an array (N, H, W, 3); a data
                spec as `--data` takes it (a folder, *.parquet, ...); or one image. Read as in training: upright, any
                number of bits, transparency on white.
            batch_size: images per forward pass; with what is read ahead, all that memory holds besides the result.
            progress: called with (images done, all).
            normalize: whether rows have length one.

        Returns:
            (N, D) float32, or (D,) of a single image, on the CPU.

        Raises:
            UnreadableImage: an image cannot be read; the sentence names it.
            DataError: neither images nor a data spec.
        """
        return encode(self, images, batch_size=batch_size, progress=progress, normalize=normalize)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_student(self, Run(save_directory), self.metadata)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None, local_files_only: bool, token: str | bool | None, **_: Any
    ) -> Student:
        if Path(model_id).is_dir():
            return load_student(model_id)
        return load_student(fetch(model_id, revision=revision, local_files_only=local_files_only, token=token))


def student_encoder(settings: StudentSettings) -> Encoder:
    """The network of a student to be trained, with the input contract that its settings ask for.

    Raises:
        ModelError: the spec cannot be built, or a contract that no network can have.
    """
    encoder = build_encoder(settings.spec, pretrained=False, image_size=settings.image_size)
    contract = encoder.contract.override(crop=settings.crop, interpolation=settings.interpolation)
    return replace(encoder, contract=contract)


def build_student(settings: StudentSettings, embed_dim: int) -> Student:
    """A student to be trained for a teacher that is `embed_dim` (D) wide.

    Raises:
        ModelError: the spec or the head cannot be built.
    """
    encoder = student_encoder(settings)
    # The features themselves, never negative after a ReLU, could not follow a centered space whatever the widths.
    head = "mlp" if settings.head == "auto" and settings.transform != "none" else settings.head
    module, table = build_head(encoder.width, embed_dim, head, settings.hidden)
    return Student(encoder, module, table | ({"transform": settings.transform} if settings.transform != "none" else {}))


def save_student(student: Student, run: Run, metadata: Mapping[str, Any]) -> None:
    """Write the finished student: weights first, student.json last, so that its existence means training is done.

    The metadata is what else student.json shall say (method, teacher, data, cost), plain JSON.
    """
    # A student.json left over from an earlier training must not vouch for the new weights while they are written.
    run.student_path.unlink(missing_ok=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.state_dict().items()}
    with atomic(run.weights_path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    written = {
        "format": FORMAT, "understudy": __version__, "spec": student.spec, "architecture": student.architecture,
        "head": student.head_table, "contract": student.contract.table(), "width": student.width,
        "embed_dim": student.embed_dim,
        "parameters": {"backbone": parameters(student.backbone), "head": parameters(student.head)},
        "weights": fingerprint_weights(student), "weights_checksums": str(Checksums.of(run.weights_path)),
    }  # fmt: skip
    write_json(run.student_path, {**metadata, **written})


def load_student(path: str | os.PathLike[str], *, trust_code: bool | str | Sequence[str] = ()) -> Student:
    """A trained student, in eval mode, on the CPU.

    Args:
        path: a run folder, an export folder, or the student.safetensors or student.json in it; or ORG/NAME of the
            Hugging Face hub, `@REVISION` behind it, where no such path exists.
        trust_code: modules of yours that the run may name as `python:module:callable`, whose import runs them; True for
            whatever it names. Without, nothing is imported on its word.

    Raises:
        StoreError: there is no finished student, or its two files do not belong together.
        ModelError: its architecture cannot be built here, or is code that is not trusted.
    """
    path = Path(path).expanduser()
    if not path.exists() and is_repository(str(path)):
        path = fetch(str(path))
    run = Run(path.parent if path.name in ("student.safetensors", "student.json") else path)
    if not run.path.is_dir():
        raise StoreError(f"There is no run folder {run.path}. A student is loaded from the folder that training wrote.")
    if not run.trained:
        started = run.config_path.exists() or run.checkpoint_path.exists()
        unfinished = "training is not finished: run `understudy train` again, it resumes"
        reason = unfinished if started else "it is not a run folder"
        raise StoreError(f"{run.path} holds no finished student (student.safetensors and student.json): {reason}.")
    table = run.student
    if table.get("format") != FORMAT:
        raise StoreError(f"{run.student_path} has format {table.get('format')!r}, this version reads {FORMAT}.")
    contract, head = _described(run, table)
    # The initialization that the weights replace shall cost no random numbers.
    with torch.random.fork_rng(devices=[]), trusting(trust_code):
        require_trust(table["architecture"], run.student_path)
        encoder = build_encoder(table["architecture"], pretrained=False, image_size=contract.size)
        module, _ = build_head(head["width"], head["out"], head["kind"], head["hidden"] or 0)
    student = Student(replace(encoder, contract=contract, spec=table["spec"]), module, head)
    try:
        student.load_state_dict(load_file(run.weights_path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise StoreError(
            f"{run.weights_path} does not fit {run.student_path} ({first_line(error)}). Was either file replaced?"
        ) from None
    if fingerprint_weights(student) != table["weights"]:
        raise StoreError(
            f"{run.weights_path} is not the file that {run.student_path} describes. Was either file replaced?"
        )
    run.require_whole()  # all that was loaded is right; the rest of both files too
    student.metadata = {name: value for name, value in table.items() if name not in DESCRIBED}
    return student.eval()


def _described(run: Run, table: Mapping[str, Any]) -> tuple[Contract, dict[str, Any]]:
    """The contract and the head of student.json, which may come from anywhere.

    Raises:
        StoreError: something is missing or of another kind, or the head would be larger than the file of its weights.
    """
    try:
        if missing := [name for name in ("architecture", "contract", "head", "spec", "weights") if name not in table]:
            raise ValueError(f"{', '.join(missing)} missing")
        if no_text := [name for name in ("architecture", "spec", "weights") if not isinstance(table[name], str)]:
            raise ValueError(f"its {no_text[0]} is {table[no_text[0]]!r:.40}")
        family, _, file = parse_spec(table["architecture"])
        if file is not None or not family.takes_file:
            raise ValueError(f"its architecture {table['architecture']} is no network without weights")
        contract, head = Contract.from_table(table["contract"]), dict(table["head"])
        sizes = [head["width"], head["out"], head["hidden"] or 1]
        if not all(type(size) is int and size > 0 for size in sizes) or head["kind"] not in HEADS:
            raise ValueError(f"its head is {head}")
        numbers = max(head_multiply_adds(head) or 0, head["out"] ** 2 if head.get("transform") else 0, *sizes)
        if 2 * numbers > (size := run.weights_path.stat().st_size):
            raise ValueError(f"its head {head} does not fit into the {size:,} bytes of {run.weights_path.name}")
    except (ModelError, AttributeError, ValueError, KeyError, TypeError) as error:
        reason = f"its head lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise StoreError(f"{run.student_path} is not what training writes: {reason}. Restore it.") from None
    return contract, head
