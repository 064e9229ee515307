"""Evaluation data sets in their official layouts, one layout a file."""
