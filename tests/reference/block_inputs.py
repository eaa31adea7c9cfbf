"""Inputs of a block to test it on."""

import math

import numpy as np

from reference import BlockConfig

Array = np.ndarray


def draw(config: BlockConfig, shape: tuple[int, ...]) -> tuple[Array, dict[str, Array], Array]:
    """Draw x, all parameters, and a cotangent of x's shape, [*shape, d_model].

    No weight of a norm is one and no bias is zero, for those hide whether they are there; matrices keep the size of rows.
    """
    rng = np.random.default_rng(0)
    parameters = {name: rng.normal(size=shape) / math.sqrt(shape[-1]) for name, shape in config.parameters().items()}
    parameters |= {name: p + np.sign(p) for name, p in parameters.items() if name.endswith("norm.weight")}
    x, dout = rng.normal(size=(2, *shape, config.d_model))
    return x, parameters, dout
