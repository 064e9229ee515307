"""Model x images -> (N, D) array: the teacher's pass into a store, any encoder's into memory for evaluation."""
