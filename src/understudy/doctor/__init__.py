"""What is wrong with this installation, device or data, and the fix.

Libraries are imported in other processes, so one that is broken, or that ends the interpreter, becomes a line of the
answer instead of the end of it. Nothing here imports torch unless a teacher is asked about.
"""
