"""Training: the one loop that every method goes through.

`loop` is the page to read. `setup` and `state` build what it steps and what a checkpoint holds, `step_inputs` and
`step` are the two halves of a step, `monitor` shows it, `finish` writes the student. Each other file is one trade:
schedule, processes, chunks, compiling, checkpoints, stopping; `resume` says whether a run folder belongs to settings.
"""
