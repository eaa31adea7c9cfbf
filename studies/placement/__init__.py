"""No norm, Post-LN or Pre-LN: how large are a model's gradients, up to which rate does it learn, and does warm-up help?"""
