"""Training: the one loop, its schedule, its checkpoints, its processes and its log."""
