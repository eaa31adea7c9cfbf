"""The nonlinearities of a feed-forward layer; each returns y and the function that pulls dy back to its inputs."""

import math

import numpy as np

from ports.numpy.rows import Array, Backward, widen

erfc = np.vectorize(math.erfc, otypes=[np.float64])  # NumPy has none


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(−x)); where the exponential overflows, it is zero as it should be."""
    return 1 / (1 + np.exp(-x))


def swiglu(gate: Array, up: Array) -> tuple[Array, Backward]:
    r"""The gate's SiLU times the other projection.

    $$ y = g\,\sigma(g)\,u, \qquad dg = dy\,u\,\sigma(g)\,(1 + g\,\sigma(-g)) $$
    """
    g, u = widen(gate), widen(up)
    silu, slope = g * sigmoid(g), sigmoid(g) * (1 + g * sigmoid(-g))

    def backward(dy: Array) -> tuple[Array, Array]:
        dy = widen(dy)
        return (dy * u * slope).astype(gate.dtype), (dy * silu).astype(up.dtype)

    return (silu * u).astype(gate.dtype), backward


def geglu(gate: Array, up: Array, *, approximate: bool) -> tuple[Array, Backward]:
    """The gate's GELU times the other projection."""
    g, u = widen(gate), widen(up)
    activated, to_gate = gelu(g, approximate=approximate)

    def backward(dy: Array) -> tuple[Array, Array]:
        dy = widen(dy)
        (dgate,) = to_gate(dy * u)
        return dgate.astype(gate.dtype), (dy * activated).astype(up.dtype)

    return (activated * u).astype(gate.dtype), backward


def gelu(x: Array, *, approximate: bool) -> tuple[Array, Backward]:
    r"""x times the normal distribution's share below it; `approximate` uses a hyperbolic tangent, which is a sigmoid, for it.

    $$ y = x\,\Phi(x), \qquad dx = dy\,(\Phi(x) + x\,\Phi'(x)) $$
    """
    wide = widen(x)
    if approximate:  # (1 + tanh a) / 2 is sigmoid(2a), which does not cancel
        a = math.sqrt(8 / math.pi) * (wide + 0.044715 * wide**3)
        share = sigmoid(a)
        slope = share * sigmoid(-a) * math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * np.square(wide))
    else:
        share = (erfc(-wide / math.sqrt(2)) / 2).astype(wide.dtype)
        slope = np.exp(-np.square(wide) / 2) / math.sqrt(2 * math.pi)

    def backward(dy: Array) -> tuple[Array]:
        return ((widen(dy) * (share + wide * slope)).astype(x.dtype),)

    return (wide * share).astype(x.dtype), backward
