"""RMSNorm and a gate in one op; it returns y and the function that pulls dy back to its inputs."""

from typing import Any, Literal

from ports.numpy.feed_forward import sigmoid
from ports.numpy.rows import Array, Backward, rms_norm, widen


def gated_rms_norm(
    x: Array,
    gate: Array,
    weight: Array | None,
    *,
    eps: float,
    norm_before_gate: bool,
    activation: Literal["silu", "sigmoid"],
    group_size: int | None = None,
    order: str = "scale_then_cast",
) -> tuple[Array, Backward]:
    r"""Multiply by an activation of the gate, after RMSNorm or before it.

    $$ y = \mathrm{rms\_norm}(x) \cdot a(\mathrm{gate}) \quad\text{or}\quad y = \mathrm{rms\_norm}(x \cdot a(\mathrm{gate})) $$

    What the norm makes is cast before the gate multiplies it, if x_hat is.
    """
    how: dict[str, Any] = {"eps": eps, "order": order, "group_size": group_size}
    wide, (a, slope) = widen(x), activated(widen(gate), activation)
    if norm_before_gate:
        dtype = x.dtype if order == "cast_then_scale" else wide.dtype
        z, norm_backward = rms_norm(x, weight, dtype=dtype, **how)

        def backward(dy: Array) -> tuple[Any, ...]:
            dy = widen(dy)
            dx, dweight = norm_backward(dy * a)
            return dx, (dy * widen(z) * slope).astype(gate.dtype), dweight

        return (widen(z) * a).astype(x.dtype), backward

    y, norm_backward = rms_norm(wide * a, weight, dtype=x.dtype, **how)

    def backward_through_gate(dy: Array) -> tuple[Any, ...]:
        ds, dweight = norm_backward(dy)
        return (ds * a).astype(x.dtype), (ds * wide * slope).astype(gate.dtype), dweight

    return y, backward_through_gate


def activated(gate: Array, activation: str) -> tuple[Array, Array]:
    r"""The activation of the gate, and the derivative of that.

    $$ g\,\sigma(g), \quad \sigma(g)\,(1 + g\,\sigma(-g)) \qquad\text{or}\qquad \sigma(g), \quad \sigma(g)\,\sigma(-g) $$
    """
    share, rest = sigmoid(gate), sigmoid(-gate)
    return (gate * share, share * (1 + gate * rest)) if activation == "silu" else (share, share * rest)
