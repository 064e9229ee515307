"""The way out: a trained student in the formats that other programs open, each judged by its own runtime.

A target is one class in one file below `targets`. `exporting.export_student` writes what was asked for, runs it on
held-out images, and keeps it only where it agrees with the student; `parity` has the measures, `card` the model card.
"""
