"""What do RMSNorm, LayerNorm and BatchNorm do to an input, and what do they cost: parameters, time and memory?"""
