"""Views: replayable augmentation as rows of numbers, the batches images meet in, and the loader that reads both."""
