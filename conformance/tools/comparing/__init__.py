"""Two ports on the same inputs: where they part, by how many ulps, and which of them the golden sides with."""
