"""RMSNorm, LayerNorm and BatchNorm: their exact numbers, their intervals, and the norm laid open for alteration."""
