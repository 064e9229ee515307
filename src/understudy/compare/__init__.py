"""Several methods, or a grid of settings, over one teacher: one table, and how far it can be trusted.

Every cell of a comparison is an ordinary run folder. All of them train on the same images, with the views, the first
weights of the student and the batches of their seed, the same head, the same family of optimizer and the same number
of image passes (or of minutes). So that none loses by a bad learning rate, each variant first tries as many rates as
any other, on one seed and a share of the budget; the best is the one whose backbone keeps most of the teacher's
neighborhoods on training images that no run of the comparison is trained on. No label is read before the evaluation.

    OUT/plan.json  trials/VARIANT/lr-RATE/  cells/VARIANT/seed-N-lr-RATE/  comparison.json  comparison.csv  report.html

What is finished is never done again: a run that failed is tried once more by each further call.
"""
