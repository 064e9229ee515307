"""Settings of `understudy embed`. Torch-free: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.settings import setting

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
"""What a teacher can compute in; `models.precision.resolve_precision` says what auto is."""

TEACHER_OUTPUT = (
    "What of the network is its embedding: pooled, its own convention; cls, the class token; patch-mean, the mean of "
    "the patch tokens; cls+patch-mean, both side by side; or the name of a part of it, or of an output of an ONNX file."
)

TRANSFORMS = ("none", "center", "standardize", "whiten", "phi-s")
"""What can be done to the teacher's space before the loss; `embed.transform.fit` says what each is."""


@dataclass(frozen=True)
class EmbedSettings:
    """One pass of an encoder over a data source."""

    data: str = setting(
        help="Images: a folder, *.parquet, *.tar, *.arrow, *.npy, list:FILE, torchvision:NAME, hf:ORG/NAME, s3://..., "
        "digits.",
        synonyms="dataset data_path data_dir",
    )
    teacher: str = setting(
        help="Encoder spec with weights, e.g. onnx:FILE, timm:NAME@FILE; run:FOLDER for a student.",
        synonyms="model arch",
    )
    teacher_mean: tuple[float, ...] | None = setting(None, "Mean the encoder expects, three numbers on [0, 1] pixels.")
    teacher_std: tuple[float, ...] | None = setting(None, "Standard deviation the encoder expects, three numbers.")
    teacher_sharding: str = setting(
        "none",
        "fsdp: under torchrun each process holds a share of the weights, for a teacher too large for one device; none: "
        "each holds all.",
        choices=("none", "fsdp"),
    )
    teacher_precision: str = setting(
        "auto", "Precision of the encoder; auto: tf32 on a CUDA device that has it, fp32 elsewhere.", choices=PRECISIONS
    )
    teacher_output: str = setting("pooled", TEACHER_OUTPUT)
    image_size: int | None = setting(
        None, "Input side in pixels. Default: the encoder's own.", minimum=8, synonyms="teacher_size"
    )
    store: str = setting("store", "Root folder of the stores.", synonyms="out output_dir")
    dtype: str = setting("float16", "Stored precision.", choices=("float16", "float32"))
    batch_size: int = setting(128, "Images per forward pass.", minimum=1)
    workers: int | None = setting(
        None, "Processes that read images. Default: chosen by source and cores.", minimum=0, synonyms="num_workers j"
    )
    device: str = setting("auto", "cpu, cuda, cuda:N, mps, or auto.", synonyms="gpu cuda")
    limit: int | None = setting(None, "Use only this many images.", minimum=1)
    verify_images: bool = setting(
        False,
        "Compare all images, byte for byte, with those that a store was made from: names, sizes and times are always "
        "compared. Reads every file once.",
    )
