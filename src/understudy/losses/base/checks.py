"""Embeddings that cannot be compared are refused in a sentence that carries both shapes."""

from torch import Tensor

from understudy.errors import ShapeError


def check_pair(student: Tensor, teacher: Tensor, names: tuple[str, str] = ("student", "teacher")) -> None:
    """Refuse two embeddings that cannot be compared row by row.

    Raises:
        ShapeError: not (B, D) both, of different shapes, empty, or not floating point; the sentence carries both.
    """
    first, second = names
    shapes = f"{first} {tuple(student.shape)}, {second} {tuple(teacher.shape)}"
    if student.ndim != 2 or teacher.ndim != 2:
        raise ShapeError(f"Embeddings must be (B, D) matrices, got {shapes}. Pool or flatten the features first.")
    if student.shape[0] != teacher.shape[0]:
        raise ShapeError(f"Both embeddings must hold the same images in the same order, got {shapes}: B differs.")
    if student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            f"Both embeddings must have the same width, got {shapes}: D differs. Give the student a head that ends in "
            f"{teacher.shape[1]} (models.build_head)."
        )
    if student.numel() == 0:
        raise ShapeError(f"Embeddings are empty, got {shapes}. A batch needs at least one image and one dimension.")
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise ShapeError(f"Embeddings must be floating point, got {first} {student.dtype}, {second} {teacher.dtype}.")


def check_views(embeddings: Tensor, views: int, name: str) -> None:
    """Refuse embeddings that are not those of several views of the same images.

    Raises:
        ShapeError: not (views, B, D); the sentence carries the shape.
    """
    if embeddings.ndim != 3 or len(embeddings) != views:
        raise ShapeError(
            f"This method compares {views} views: embeddings must be ({views}, B, D), got {name} "
            f"{tuple(embeddings.shape)}. Stack the embeddings of the views."
        )
