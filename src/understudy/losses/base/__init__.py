"""What the methods share: the class they are, what they may ask for, the algebra they are written in, the queue."""

from understudy.losses.base.bags import next_in_bag
from understudy.losses.base.loss import Loss, NoSettings, Terms
from understudy.losses.base.processes import all_rows, gather_rows, sum_over_processes
from understudy.losses.base.queue import Queue, QueueLoss
from understudy.losses.base.requirements import Requirements
from understudy.losses.base.similarity import (
    FLOOR,
    check_pair,
    check_views,
    column_correlation,
    cosine_from_sums,
    cosine_of_rows,
    exact,
    exact_pair,
    infonce,
    relative_entropy,
    row_correlation,
    row_cosine,
    scaled_pair,
    smaller_pair,
    unit_pair,
    unit_rows,
)

__all__ = [
    "FLOOR", "Loss", "NoSettings", "Queue", "QueueLoss", "Requirements", "Terms", "all_rows", "check_pair",
    "check_views", "column_correlation", "cosine_from_sums", "cosine_of_rows", "exact", "exact_pair", "gather_rows",
    "infonce", "next_in_bag", "relative_entropy", "row_correlation", "row_cosine", "scaled_pair", "smaller_pair",
    "sum_over_processes", "unit_pair", "unit_rows",
]  # fmt: skip
