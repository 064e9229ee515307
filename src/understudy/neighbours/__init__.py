"""Who is near whom: one cosine search for the graph, kNN scoring, retrieval and fidelity, and what is made of it.

`search` is the exact top-k, `approximate` its counterpart for large sets, `graph` writes the neighbours of a
store's rows to disk, `vote` turns neighbours into class predictions, `overlap` compares two neighbourhoods.
"""
