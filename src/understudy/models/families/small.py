"""`small:resnet20`: residual networks for images of 32 x 32."""

from __future__ import annotations

from understudy.models.families import BuiltNetwork, Family, Request


class Small(Family):
    """A ResNet of `models.resnet`."""

    name = "small"
    form = "small:resnet20"
    summary = "ResNet-8, 14, 20, 32 or 56 for 32 x 32 images (He et al. 2016); `small:resnet20x2` is twice as wide"
    names_architecture = True

    @staticmethod
    def build(request: Request) -> BuiltNetwork:
        """See `Family.build`."""
        from understudy.models.contract import Contract
        from understudy.models.resnet import small_resnet

        module = small_resnet(request.name)
        contract = Contract.untrained(request.image_size or 32, "bicubic")
        return BuiltNetwork(module, contract, request.load_file(module))
