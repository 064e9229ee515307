"""What a method may ask of the training loop: the whole vocabulary between the two."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Requirements:
    """What a method is called with. The loop gives exactly the keywords that are asked for here.

    Every image of a batch may be shown in several views, numbered from 0. "Of views (0, 1)" below means stacked, (2, B,
    D); of a single view it means (B, D). All sizes are those of one process.

    Args:
        student_views: of these the method gets `student`, the embeddings of the student.
        teacher_views: of these it gets `teacher`, the embeddings of the frozen teacher; () for a method without one.
        key_views: of these it gets `key`, the embeddings of an exponential moving average of the student, without
            gradient; () for a method without one. The average normalizes with averaged statistics (EMAN, Cai et al.
            2021, arXiv 2101.08482), so batches leak nothing and the result does not depend on the number of processes.
        bags: it gets `bags`, (B,) integers, equal for images drawn around the same anchor, which comes first.
        passes: it gets `passes`, the image passes done so far, a float, for methods that begin differently.
        cutmix: it gets `mixed`, the student's embeddings (B, D) of images into which a box of the next image of the
            same bag (`next_in_bag`) was pasted, both in the student's view; and `share`, (B,), how much of each is
            still its own.
        tokens: it gets `student_tokens` (B, N, F) and `teacher_tokens` (B, M, D), the patch tokens of vision
            transformers after their last block and norm, of the same views as the embeddings.
        attention: it gets `student_attention` (B, H, 1 + N) and `teacher_attention` (B, G, 1 + M), the share of the
            class token's attention that each head of the last block gives to itself and to the patches.
        masks: it gets `masked_tokens` (M, N, F), the student's patch tokens of images of its first view with hidden
            patches; `masks` (M, N), which patches were hidden; `masked` (M,), the places of these images in the batch.
            How many is said by `Loss.mask_probability` and `Loss.mask_ratio`, what stands there by `Loss.mask_token`.
    """

    student_views: tuple[int, ...] = (0,)
    teacher_views: tuple[int, ...] = (0,)
    key_views: tuple[int, ...] = ()
    bags: bool = False
    passes: bool = False
    cutmix: bool = False
    tokens: bool = False
    attention: bool = False
    masks: bool = False

    @property
    def teacher(self) -> bool:
        """Whether there must be a teacher."""
        return bool(self.teacher_views)

    @property
    def key(self) -> bool:
        """Whether there must be an average of the student."""
        return bool(self.key_views)

    @property
    def views(self) -> int:
        """How many views of an image are read."""
        return 1 + max(*self.student_views, *self.teacher_views, *self.key_views, 0)
