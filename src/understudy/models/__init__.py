"""Models: what a spec string such as `timm:resnet18@FILE` or `onnx:FILE` stands for, as teacher and as student.

families (one class a prefix) build networks; encoder.py makes them an `Encoder` with its contract, width and
fingerprint; teacher.py, student.py, sharded.py are what is trained from and trained; outputs.py says what a network
shows besides its embedding, dense.py and pyramid.py its feature maps; checkpoints.py reads published weight files.
"""
