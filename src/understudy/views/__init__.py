"""Views: augmented crops of images as numbers, and the loaders that turn the numbers into pixels.

`augmentation` draws a view as a row of numbers from (seed, image id, view number). `batches` says which images meet in
a step. `loader` reads both for training, and plain center squares for embedding and evaluation; `workers` are the
processes that read and `tuning` says how many. `masking` serves methods that ask for it.
"""
