"""What a port is asked: a case, its dialect, and the shape that an answer must have."""
