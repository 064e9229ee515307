"""The export targets: one class a file, found by its name."""

from understudy.export.target import Target
from understudy.registry import Registry

TARGETS: Registry[Target] = Registry(
    __name__, "Target", "export target", first=("folder", "onnx", "onnx-int8", "torch", "timm", "hf")
)
