"""What the methods share: the class they are, what they may ask for, the algebra they are written in, the queue."""
