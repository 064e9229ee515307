"""Size, speed and memory of a network, measured on blank images."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from understudy.errors import DataError
from understudy.evaluate.encoded_set import Embedding, EncodedSet, Figures
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.cost import flops, parameters
from understudy.models.onnx_encoder import onnx_encoders

WARM_UP = 2
SINGLES = 20
SECONDS = 2.0
"""At most so many single images are timed, and for about so long."""


def network_cost(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Measure an encoded set's network, without images; the large batch is of `batch_size`.

    Returns:
        "parameters", "flops", "file_mb" (10^6 bytes); for "cpu" and, where the evaluation runs on one, "cuda":
        "latency_ms cpu", "images_per_s@128 cpu", "peak_memory_mb@128 cpu", with the batch size in the name.

    Raises:
        DataError: there are only features.
    """
    encoder, batch_size = encoded_set.encoder, settings.batch_size
    if encoder is None:
        raise DataError(f"The cost is that of a network, and of {encoded_set.name} there are only features.")
    whole = encoder.student if isinstance(encoder, Embedding) else encoded_set.network()[0]
    figures: Figures = {"parameters": parameters(whole)}
    work = flops(_Forward(encoder.features, whole), encoder.contract.size)
    if work is not None:
        figures["flops"] = work
    figures["file_mb"] = file_bytes(whole) / 1e6
    home = torch.device(encoded_set.device)
    notes = []
    for device in dict.fromkeys([torch.device("cpu"), home]):
        if device.type not in ("cpu", "cuda"):
            notes.append(f"Timings are taken on CPU and CUDA, not on {device.type}.")
            continue
        whole.to(device)
        try:
            figures |= timings(encoder.features, encoder.contract.size, batch_size, device)
            peak = peak_bytes(encoder.features, whole, encoder.contract.size, batch_size, device)
        finally:
            whole.to(home)
        if peak is None:
            notes.append("The memory of an ONNX file's activations is not seen from here.")
        else:
            figures[f"peak_memory_mb@{batch_size} {device.type}"] = peak / 1e6
    if work is None:
        notes.append("The work of this ONNX graph cannot be inferred.")
    if notes:
        figures["note"] = " ".join(notes)
    return figures


class _Forward(nn.Module):
    """A function of prepared images, with the module it runs, for `models.cost.flops`."""

    def __init__(self, function: Callable[[Tensor], Tensor], module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = function, module

    def features(self, images: Tensor) -> Tensor:
        return self.function(images)


def file_bytes(module: nn.Module) -> int:
    """Bytes of the weights as they are kept: an ONNX file's size, else all tensors of the state."""
    for encoder in onnx_encoders(module):
        return encoder.file.stat().st_size
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


@torch.no_grad()
def timings(function: Callable[[Tensor], Tensor], size: int, batch_size: int, device: torch.device) -> Figures:
    """Latency of one image and throughput of a batch of a function of prepared images, on "cpu" or "cuda"."""

    def seconds(images: Tensor) -> float:
        start = time.perf_counter()
        function(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    one = torch.zeros(1, 3, size, size, device=device)
    for _ in range(WARM_UP):
        seconds(one)
    singles, begun = [seconds(one)], time.perf_counter()
    while len(singles) < SINGLES and time.perf_counter() - begun < SECONDS:
        singles.append(seconds(one))
    many = torch.zeros(batch_size, 3, size, size, device=device)
    first = seconds(many)
    best = min([first, *(seconds(many) for _ in range(2 if first < 10 * SECONDS else 0))])
    return {
        f"latency_ms {device.type}": 1000 * statistics.median(singles),
        f"images_per_s@{batch_size} {device.type}": batch_size / best,
    }


@torch.no_grad()
def peak_bytes(
    function: Callable[[Tensor], Tensor], module: nn.Module, size: int, batch_size: int, device: torch.device
) -> int | None:
    """Weights, images and live activations at their largest, in bytes; None for an ONNX file."""
    if onnx_encoders(module):
        return None
    images = torch.zeros(batch_size, 3, size, size, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function(images)
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    held = list(module.state_dict().values())
    live = _LiveBytes(held, images)
    with live:
        function(images)
    weights: int = sum(tensor.numel() * tensor.element_size() for tensor in held)
    return weights + live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators have made and that are still alive, after each operator."""

    def __init__(self, weights: list[Tensor], images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.others = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in weights}  # views of them are free
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak: int = 0
        self._note([images])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._note(one for one in tree_leaves(result) if isinstance(one, Tensor))
        return result

    def _note(self, tensors: Any) -> None:
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata not in self.others:
                self.alive[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
