"""Models: what a spec string such as `timm:resnet18@FILE` or `onnx:FILE` stands for, as teacher and as student.

contract.py (the input a network was trained on), backbones.py (spec -> module, width, contract), checkpoints.py
(published weight files), resnet.py (ResNets for 32 x 32), onnx_encoder.py (a frozen ONNX file), student.py, teacher.py,
tokens.py (patch tokens and attention of vision transformers), dense.py (feature maps of any network), pyramid.py (a
detector's levels out of them), cost.py.
"""
