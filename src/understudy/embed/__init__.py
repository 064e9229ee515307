"""Embed: a frozen encoder and images to an (N, D) array, once, however often it is needed.

`embedding` fills a store with the teacher's rows, resumably and by many processes, or gives any encoder's features in
memory; `blocks` are the parts of a store in the making. `recorded` keeps the teacher's answers to augmented views, and
`transform` fits an invertible map of the teacher's space.
"""
