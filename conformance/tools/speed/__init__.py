"""How long a port takes, beside whether what it answers is right."""
