"""Time beside correctness: how long a port takes, what no port can do without, and whether what it answered was right."""
