r"""A composite op's case -> its exact values, and how far an honest implementation may be from them.

Element by element, a bound for a whole block is hopelessly wide, or wrong. Instead the program is evaluated `RUNS` times with
the noise of an honest implementation in every value that it stores and every sum that it forms, forward and backward
(`NoisyMachine`). With σ the root mean square of what comes of it, pooled over rows and columns since sixteen runs tell a
single element's σ only roughly,

$$ t_{ij} = \tau \sqrt{\tfrac12 \sigma_{ij}^2
   + \tfrac12 \overline{\sigma_{i\cdot}^2}\;\overline{\sigma_{\cdot j}^2} / \overline{\sigma^2}},
   \qquad \mathrm{rms}(error) \le \kappa\, \max_{runs}\, \mathrm{rms}(deviation) $$

The largest of the runs rather than their mean: where a few directions are magnified above all others, a stack's deviations are
of very unlike size from one run to the next.

The draws follow from the case and the seed, so that the interval is a fixture like any other. docs/block.md has the figures.
"""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

import reference
from conformance.numbers.expected import Expected, root_mean_square
from conformance.numbers.rounding import HALF
from conformance.ops.block.anatomy import Composite, true_program
from conformance.ops.block.cases import BlockCase
from conformance.ops.block.inputs import block_inputs
from conformance.ops.block.machine import Machine, NoisyMachine

Array = np.ndarray
Values = dict[str, Array]

RUNS = 16
TAU = {"half": 8.0, "single": 24.0}
KAPPA = {"half": 1.5, "single": 4.0}


@lru_cache(maxsize=64)  # a case's runs follow one another, and all read the same
def exact_inputs(case: BlockCase, seed: int) -> tuple[Values, Array]:
    """A case's inputs and constants, and the cotangent of its output, in float64; not to be written to."""
    exact = {name: tensor.astype(np.float64) for name, tensor in block_inputs(case, seed).items()}
    return exact, exact.pop(f"d{next(iter(case.outputs))}")


def true_composite(case: BlockCase, seed: int) -> Composite:
    """A case's op laid open, with nothing altered."""
    return Composite(case, true_program(case, exact_inputs(case, seed)[0]))


def run(composite: Composite, m: Machine, seed: int) -> tuple[Values, Values]:
    """Evaluate a composite op on a machine: all values by name, and what a port is asked for."""
    case, program = composite.case, composite.program
    tensors, cotangent = exact_inputs(case, seed)
    with np.errstate(all="ignore"):
        values = program.forward(m, tensors)
        cotangents = program.backward(m, values, cotangent)
    output, *gradients = case.outputs
    outputs = {output: values[program.stages[-1].name]}
    for name in gradients:
        of = name[1:]
        outputs[name] = cotangents[of] if of in cotangents else np.zeros(case.output_shape(name))
    return values, composite.finish(outputs)


def composite_outputs(composite: Composite, seed: int, exact: Values | None = None) -> dict[str, Expected]:
    """What is expected of a port that does what this one does; `exact` are its outputs, where they are known already."""
    case = composite.case
    exact = exact or run(composite, Machine(), seed)[1]
    squares = {name: np.zeros_like(value) for name, value in exact.items()}
    largest = dict.fromkeys(exact, 0.0)
    for number in range(RUNS):
        key = hashlib.sha256(f"{case.id} noise {seed} {number}".encode()).digest()[:16]
        _, noisy = run(composite, NoisyMachine(case.dtype, int.from_bytes(key, "little")), seed)
        for name, value in noisy.items():
            off = _squared_error(value, exact[name])
            squares[name] += off / RUNS
            largest[name] = max(largest[name], root_mean_square(off, exact[name]))
    precision = "half" if case.dtype in HALF else "single"
    return {
        name: Expected.around(
            exact[name],
            TAU[precision] * np.sqrt(_pooled(squares[name])),
            case.dtype,
            rms=KAPPA[precision] * largest[name],
        )
        for name in case.outputs
    }


def _squared_error(value: Array, exact: Array) -> Array:
    """Zero where the exact value is not finite, which nothing but itself is near; infinite where only the noisy one is not."""
    with np.errstate(all="ignore"):
        off = np.nan_to_num(np.square(value - exact), nan=np.inf, posinf=np.inf)
    return np.where(np.isfinite(exact), off, 0.0)


def _pooled(variance: Array) -> Array:
    """Half of every element's own variance, and half of what its row and its column make likely.

    An element that noise makes infinite says nothing of the others.
    """
    rows = variance.reshape(-1, variance.shape[-1])
    finite = np.where(np.isfinite(rows), rows, 0.0)
    mean = np.mean(finite)
    if mean == 0:
        return variance
    likely = np.full_like(rows, mean)
    if len(rows) > 1:
        likely = np.mean(finite, axis=1, keepdims=True) * np.mean(finite, axis=0) / mean
    return (variance + likely.reshape(variance.shape)) / 2


def block_golden(case: BlockCase, seed: int) -> tuple[Values, dict[str, Expected]]:
    """A case's intermediates by name, and what is expected of its outputs; the values are those of `reference`."""
    intermediates, exact = _reference(case, *exact_inputs(case, seed))
    return intermediates, composite_outputs(true_composite(case, seed), seed, exact)


def _reference(case: BlockCase, tensors: Values, cotangent: Array) -> tuple[Values, Values]:
    c, settings = case.config, case.settings
    match case.op:
        case "rope":
            first = settings["position"]
            positions = np.arange(first, first + case.s, dtype=np.float64)
            turn: dict[str, Any] = {"base": c.rope_base, "interleaved": c.rope == "interleaved"}
            y, dx = (f(a, positions, **turn) for f, a in ((reference.rope, tensors["x"]), (reference.rope_vjp, cotangent)))
            return {}, {"y": y, "dx": dx}
        case "attention":
            q, k, v = (tensors[name] for name in "qkv")
            mask: dict[str, Any] = {"causal": c.causal, "key_mask": tensors["key_mask"] != 0 if "key_mask" in tensors else None}
            y, scores, probs = reference.attention(q, k, v, **mask)
            gradients = reference.attention_vjp(cotangent, q, k, v, **mask)
            return {"scores": scores, "probs": probs}, {"y": y} | gradients._asdict()
        case "swiglu":
            gate, up = tensors["gate"], tensors["up"]
            dgate, dup = reference.swiglu_vjp(cotangent, gate, up)
            return {}, {"y": reference.swiglu(gate, up), "dgate": dgate, "dup": dup}
        case "gelu":
            x, how = tensors["x"], settings["approximate"]
            return {}, {
                "y": reference.gelu(x, approximate=how),
                "dx": reference.gelu_vjp(cotangent, x, approximate=how),
            }
        case _:
            return _reference_blocks(case, tensors, cotangent)


def _reference_blocks(case: BlockCase, tensors: Values, cotangent: Array) -> tuple[Values, Values]:
    """The block, or the blocks of a stack one after another, and then back."""
    constants: dict[str, Any] = {name: tensors[name] for name in case.constants if name != "key_mask"}
    constants |= {"position": case.settings["position"]}
    constants |= {"key_mask": tensors["key_mask"] != 0} if "key_mask" in tensors else {}
    layers = [f"{layer}." for layer in range(case.n_layers)] if case.op == "pre_ln_stack" else [""]
    parameters = {layer: {name: tensors[layer + name] for name in case.config.parameters()} for layer in layers}
    x, taps, given_to = tensors["x"], Values(), Values()
    for layer in layers:
        given_to[layer] = x
        x, intermediates = reference.pre_ln_block(x, parameters[layer], case.config, **constants)
        taps |= {layer + name: value for name, value in intermediates.items()}
    gradients: Values = {}
    for layer in reversed(layers):
        made = reference.pre_ln_block_vjp(cotangent, given_to[layer], parameters[layer], case.config, **constants)
        cotangent = made.pop("dx")
        gradients |= {f"d{layer}{name[1:]}": gradient for name, gradient in made.items()}
    return taps, {"out": x, "dx": cotangent} | gradients
