"""What the kit does besides judging a run, a room each."""
