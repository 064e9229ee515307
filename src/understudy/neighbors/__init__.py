"""Neighbors: one cosine search for the graph, kNN scoring, retrieval and fidelity, and what is made of its answer.

`search` is the exact top-k and `approximate` its counterpart for large sets. `graph` writes the neighbors of a store's
rows to disk, `vote` turns neighbors into class predictions and compares two neighborhoods.
"""
