r"""A composite op laid open: the program that a mistake alters, its exact values, and how far an honest implementation may be.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.numbers.expected import Expected, root_mean_square
from conformance.numbers.rounding import HALF, store
from conformance.ops.block.case import CompositeCase
from conformance.ops.block.inputs import exact_inputs
from conformance.ops.block.machine import KAPPA, RUNS, TAU, Machine, NoisyMachine, PlayedMachine
from conformance.ops.block.program import Kind, Kinds, Program, found
from conformance.ops.block.taps import HIDDEN, TAP, altered_taps, expected_taps, tap_names
from conformance.ops.op import Backward, Style
from reference import BlockConfig

Array = np.ndarray
Values = dict[str, Array]
OWN = ("program", "finish")
TOGETHER = " together"  # what ends the name of an output's noise, of all elements together


@dataclass(frozen=True)
class Composite:
    """A composite op laid open for alteration: its program, and what becomes of the gradients in the end."""

    case: CompositeCase
    program: Program
    seed: int = 0
    finish: Callable[[Values], Values] = lambda outputs: outputs

    @property
    def config(self) -> BlockConfig:
        """What it is made of."""
        return self.case.config

    def has(self, local_name: str) -> bool:
        """Whether it has a stage of this name."""
        return self.program.op(local_name) is not None

    def op(self, local_name: str, kind: Kinds[Kind]) -> Kind | None:
        """A stage's op of a kind, whatever is wrapped around it; None where there is none."""
        return found(self.program.op(local_name), kind)

    def changed(self, change: Mapping[str, Any]) -> "Composite":
        """With other stages, in every layer: by local name, or `*` for all, a function of the stage that is there.

        A stage that it does not have is nothing to change. `program` and `finish` are its own fields, and replaced first.
        """
        own = {name: value for name, value in change.items() if name in OWN}
        stages = {name: become for name, become in change.items() if name not in OWN}
        composite = replace(self, **own)
        return replace(composite, program=composite.program.changed(stages))

    # What it says as an `Anatomy`.

    def backwards(self, true: "Composite") -> tuple[Backward, ...]:
        """Its backward pass is its own; there is one way to write it."""
        return ("autograd",)

    def outputs(self, backward: Backward = "autograd") -> dict[str, Expected]:
        """What is expected of a port that does what this does."""
        return self.around(self.values())

    def in_orders(self) -> tuple[dict[str, Expected], ...]:
        """None: noise has no order."""
        return ()

    def values(self) -> Values:
        """The outputs, exactly."""
        return self.run(Machine())[1]

    def expected_taps(self, true: "Composite", exported: Values) -> dict[str, Expected]:
        """What is expected of the intermediates that part from the true ones', given what a port fed to each."""
        names = altered_taps(true.program, self.program)
        stages = (stage for stage in self.program.stages if stage.name in names or stage.local_name in HIDDEN)
        return expected_taps(self.case, Program(tuple(stages)), exact_inputs(self.case, self.seed)[0], exported)

    def true_taps(self, exported: Values) -> dict[str, Expected]:
        """What is expected of every intermediate, given what a port fed to it."""
        return expected_taps(self.case, self.program, exact_inputs(self.case, self.seed)[0], exported)

    def play(self, style: Style) -> Values:
        """Every stage rounded to the storage dtype: the outputs, and every intermediate as a tap."""
        values, outputs = self.run(PlayedMachine(self.case.dtype))
        taps = {TAP + name: values[name] for name in tap_names(self.program)}
        return {name: store(value, self.case.dtype) for name, value in (outputs | taps).items()}

    @property
    def is_exact(self) -> bool:
        """Whether its numbers are known up to honest noise: always."""
        return True

    def run(self, m: Machine) -> tuple[Values, Values]:
        """All values by name, and the outputs: what the case asks for."""
        tensors, cotangent = exact_inputs(self.case, self.seed)
        with np.errstate(all="ignore"):
            values = self.program.forward(m, tensors)
            cotangents = self.program.backward(m, values, cotangent)
        output, *gradients = self.case.outputs
        outputs = {output: values[self.program.stages[-1].name]}
        for name in gradients:
            of = name[1:]
            outputs[name] = cotangents[of] if of in cotangents else np.zeros(self.case.output_shape(name))
        return values, self.finish(outputs)

    def around(self, exact: Values, noise: Values | None = None) -> dict[str, Expected]:
        """The intervals around these outputs, which are its own, as wide as its noise, where that is not known yet."""
        noise, precision = noise or self.noise(exact), "half" if self.case.dtype in HALF else "single"
        return {
            name: Expected.around(
                exact[name],
                TAU[precision] * noise[name],
                self.case.dtype,
                rms=KAPPA[precision] * noise[name + TOGETHER].item(),
            )
            for name in self.case.outputs
        }

    def noise(self, exact: Values) -> Values:
        """Of every output each element's deviation, pooled, and the largest of all together, over runs of a noisy machine."""
        squares = {name: np.zeros_like(value) for name, value in exact.items()}
        largest = dict.fromkeys(exact, 0.0)
        for number in range(RUNS):
            key = hashlib.sha256(f"{self.case.id} noise {self.seed} {number}".encode()).digest()[:16]
            _, noisy = self.run(NoisyMachine(self.case.dtype, int.from_bytes(key, "little")))
            for name, value in noisy.items():
                off = _squared_error(value, exact[name])
                squares[name] += off / RUNS
                largest[name] = max(largest[name], root_mean_square(off, exact[name]))
        deviations = {name: np.sqrt(_pooled(each)) for name, each in squares.items()}
        return deviations | {name + TOGETHER: np.array([each]) for name, each in largest.items()}


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
