"""What holds for any implementation of a norm, whatever its values."""
