"""Everything a training run is made from. Torch-free: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from understudy.embed.settings import PRECISIONS, TEACHER_OUTPUT, TRANSFORMS
from understudy.errors import ConfigError
from understudy.models.families import FAMILIES
from understudy.models.heads import HEADS
from understudy.models.settings import StudentSettings, TeacherSettings
from understudy.neighbors.settings import NeighborSettings
from understudy.settings import as_table, flatten, resolve, setting
from understudy.views.settings import ViewSettings

DEFAULT_METHOD = "coss_centered"


@dataclass(frozen=True)
class OptimizerSettings:
    """How the student is stepped. The authors of CoSS: sgd, lr 0.03, momentum 0.9, weight decay 1e-4, cosine.

    Raises:
        ConfigError: a schedule of steps without milestones, or milestones that are not shares of training.
    """

    name: str = setting("adamw", "Optimizer.", choices=("adamw", "sgd"), synonyms="optimizer optim opt")
    lr: float | None = setting(
        None, "Peak learning rate; 0.002 for adamw, 0.03 for sgd unless given.", minimum=0, synonyms="lr learning_rate"
    )
    weight_decay: float = setting(
        1e-4, "Weight decay; adamw spares vectors (biases, norms), sgd does not.", minimum=0, synonyms="wd"
    )
    momentum: float = setting(0.9, "Momentum of sgd; beta1 of adamw.", minimum=0, maximum=1)
    schedule: str = setting(
        "cosine",
        "Learning rate after warm-up: cosine to zero, step (times decay at each milestone), or constant.",
        choices=("cosine", "step", "constant"),
        synonyms="scheduler sched",
    )
    milestones: tuple[float, ...] = setting((), "Of schedule step, as shares of training, e.g. 0.6,0.8.")
    decay: float = setting(0.1, "Of schedule step, the factor at each milestone.", minimum=0)
    hold: float = setting(
        0.0,
        "Share of training at the peak, after which the schedule is where it would be without.",
        minimum=0,
        maximum=1,
    )
    every: str = setting(
        "step",
        "How often the learning rate moves, warm-up included. epoch: once in each pass over the anchors; training is "
        "then as many of these as the authors' codes run, whose incomplete last batches are not made up for.",
        choices=("step", "epoch"),
    )
    warmup: float = setting(0.0, "Linear warm-up, in image passes.", minimum=0, synonyms="warmup_epochs")
    clip: float | None = setting(None, "Largest gradient norm; off unless given.", minimum=0)

    def __post_init__(self) -> None:
        listed = ", ".join(f"{share:g}" for share in self.milestones)
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("optimizer.schedule step needs optimizer.milestones, shares of training, e.g. 0.6,0.8.")
        if not all(0 < share < 1 for share in self.milestones):
            raise ConfigError(f"optimizer.milestones are shares of training, between 0 and 1; got {listed}.")

    @property
    def whole_epochs(self) -> bool:
        """Whether training is counted in epochs of anchors."""
        return self.every == "epoch"

    @property
    def peak(self) -> float:
        """The peak learning rate, the optimizer's own default where none was written."""
        return self.lr if self.lr is not None else {"adamw": 0.002, "sgd": 0.03}[self.name]


@dataclass(frozen=True)
class TrainSettings:
    """One training run."""

    data: str = setting(
        help="Training images: a folder, *.parquet, *.tar, *.arrow, *.npy, list:FILE, torchvision:NAME, hf:ORG/NAME, "
        "s3://..., digits.",
        synonyms="dataset data_path data_dir train_dir",
    )
    student: str = setting(
        help=f"Student: {', '.join(family.form for family in FAMILIES.values() if family.trainable)}; NAME@FILE starts "
        "from local weights, NAME@pretrained from published ones.",
        synonyms="model arch backbone",
    )
    teacher: str | None = setting(
        None,
        f"Teacher with weights: {', '.join(family.form for family in FAMILIES.values())}; NAME@FILE has local ones.",
        synonyms="teacher_model",
    )
    eval_data: str | None = setting(
        None,
        "Labeled images for evaluation: a root with train and val/test, or two specs 'A,B'.",
        synonyms="val_data val_dir",
    )
    out: str | None = setting(
        None, "Run folder; runs/METHOD-STUDENT-HASH unless given.", synonyms="output output_dir save_dir"
    )
    store: str = setting("store", "Folder of teacher embeddings, shared between runs; or one particular store.")
    verify_images: bool = setting(
        False,
        "Compare all images, byte for byte, with those that a store was made from: names, sizes and times are always "
        "compared. Reads every file once.",
    )
    method: dict[str, Any] = setting(
        {"name": DEFAULT_METHOD}, "Method of distillation. Its own settings are --method.KEY.", synonyms="loss"
    )
    image_size: int | None = setting(
        None,
        "Side of the student's input in pixels; the student's own unless given.",
        minimum=8,
        synonyms="img_size imgsz input_size",
    )
    student_crop: float | None = setting(
        None,
        "Share of an image's shorter side that the student sees in evaluation; its own unless given.",
        above=0,
        maximum=1,
    )
    student_interpolation: str | None = setting(
        None, "How images are resized for the student in evaluation, e.g. bilinear; its own unless given."
    )
    passes: float = setting(
        100.0,
        "Length of training in image passes: how many times each image is in a batch, on average.",
        above=0,
        synonyms="epochs epoch num_epochs max_epochs steps",
    )
    batch_size: int = setting(256, "Images per step, over all processes.", minimum=1, synonyms="batch bs")
    chunks: int = setting(
        1,
        "Parts in which the student sees a batch that does not fit into memory, twice each; the loss stays that of "
        "the whole batch.",
        minimum=1,
        synonyms="accum_iter grad_accum",
    )
    seed: int = setting(0, "Seed of everything random.", minimum=0)
    limit: int | None = setting(None, "Use only this many images, the same ones for every seed.", minimum=1)
    holdout: int = setting(
        512, "Images held out of training for the live signals when there is no eval data.", minimum=0
    )
    device: str = setting("auto", "cpu, cuda, cuda:N, mps, or auto.", synonyms="gpu gpus cuda")
    precision: str = setting(
        "auto",
        "Arithmetic of the student; auto is bf16 on a GPU, fp32 elsewhere.",
        choices=("auto", "fp32", "bf16", "fp16"),
        synonyms="amp fp16",
    )
    compile: str = setting(
        "auto",
        "Whether student and live teacher go through torch.compile; auto measures on a GPU whether it pays in this run "
        "and is false elsewhere, where its last bits would differ.",
        choices=("auto", "true", "false"),
    )
    teacher_mean: tuple[float, ...] | None = setting(None, "Mean the teacher expects, three numbers on [0, 1] pixels.")
    teacher_std: tuple[float, ...] | None = setting(None, "Standard deviation the teacher expects, three numbers.")
    teacher_size: int | None = setting(
        None,
        "Side of the teacher's input in pixels, whatever the student's is; the teacher's own unless given.",
        minimum=8,
    )
    teacher_output: str = setting("pooled", TEACHER_OUTPUT)
    teacher_sharding: str = setting(
        "none",
        "fsdp: under torchrun each process holds a share of the teacher's weights, for one that does not fit on each "
        "device; none: each holds all.",
        choices=("none", "fsdp"),
    )
    teacher_precision: str = setting(
        "auto",
        "Arithmetic of the teacher, also in evaluation; auto is tf32 on a CUDA device that has it, fp32 elsewhere. "
        "Stores and recorded views belong to one.",
        choices=PRECISIONS,
    )
    transform: str = setting(
        "none",
        "Transform of the teacher's space before the loss; `embed` undoes it.",
        choices=TRANSFORMS,
    )
    head: str = setting(
        "auto",
        "Student head into the teacher's space; auto is none if the widths match and there is no transform, else mlp. "
        + "; ".join(f"{name}: {head.summary}" for name, head in HEADS.items())
        + ".",
        choices=("auto", *HEADS),
    )
    head_hidden: int = setting(2048, "Width of the hidden layer of an mlp head; 0 is the backbone's own.", minimum=0)
    workers: int | None = setting(
        None,
        "Processes that read images; measured in the first steps unless given.",
        minimum=0,
        synonyms="num_workers j",
    )
    checkpoint_minutes: float = setting(10.0, "Minutes between checkpoints.", minimum=0)
    probes: int = setting(
        20, "How often in a run the student is compared with the teacher on held-out images.", minimum=0
    )
    tensorboard: bool = setting(False, "Also write TensorBoard events into the run folder.")
    views: ViewSettings = setting(ViewSettings)
    neighbors: NeighborSettings = setting(NeighborSettings)
    optimizer: OptimizerSettings = setting(OptimizerSettings)

    # What may differ between two calls on one run folder: none of it changes the trained weights.
    FREE = (
        "out",
        "store",
        "verify_images",
        "device",
        "teacher_sharding",
        "workers",
        "checkpoint_minutes",
        "probes",
        "tensorboard",
        "eval_data",
        "evaluation",
    )

    @property
    def student_settings(self) -> StudentSettings:
        """How the student is built."""
        return StudentSettings(
            self.student, self.head, self.head_hidden, self.transform, self.image_size, self.student_crop,
            self.student_interpolation,
        )  # fmt: skip

    @property
    def teacher_settings(self) -> TeacherSettings:
        """How the teacher is built; there must be one."""
        assert self.teacher is not None
        sharded = self.teacher_sharding == "fsdp"
        return TeacherSettings(
            self.teacher, self.teacher_mean, self.teacher_std, self.teacher_precision, sharded, self.teacher_size,
            self.teacher_output,
        )  # fmt: skip

    def identity_settings(self) -> dict[str, object]:
        """The settings that decide the weights, flat; a run folder is resumed only by the same ones."""
        flat = flatten(as_table(self))
        flat["optimizer.lr"] = self.optimizer.peak
        if self.eval_data is not None:
            flat["holdout"] = 0  # eval data takes the place of held-out training images
        return {key: value for key, value in flat.items() if key.split(".")[0] not in self.FREE}

    def defaults(self) -> dict[str, object]:
        """What `identity_settings` is when only data and student are given."""
        return resolve(type(self), {"data": self.data, "student": self.student}).identity_settings()
