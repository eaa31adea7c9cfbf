"""What a mistake is, and what two of them together are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np

from conformance.numbers.expected import Expected
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.cases import BlockCase
from conformance.ops.block.golden import composite_outputs, run, true_composite
from conformance.ops.block.machine import Machine
from conformance.ops.block.program import Program
from conformance.ops.block.taps import HIDDEN, altered_taps, expected_taps
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import (
    BACKWARDS,
    NOTHING,
    ORDERS,
    Backward,
    Norm,
    backwards,
    outputs_in_order,
    outputs_of,
    true_norm,
)
from conformance.ops.norms.batch_norm import BATCH_NORM_CASES
from conformance.ops.norms.cases import ROW_NORM_CASES, NormCase
from conformance.question.case import Case, Op

Array = np.ndarray

KEPT = 4096  # altered goldens kept, since every port's failures are held against the same ones

NORM_CASES: tuple[NormCase, ...] = ROW_NORM_CASES + BATCH_NORM_CASES

RMS: tuple[Op, ...] = ("rms_norm",)
LAYER: tuple[Op, ...] = ("layer_norm",)
BATCH: tuple[Op, ...] = ("batch_norm",)
ROWS: tuple[Op, ...] = (*RMS, *LAYER)
CENTRED: tuple[Op, ...] = (*LAYER, *BATCH)
ALL_NORMS: tuple[Op, ...] = (*ROWS, *BATCH)
BLOCK: tuple[Op, ...] = ("pre_ln_block",)
STACK: tuple[Op, ...] = ("pre_ln_stack",)
BLOCKS: tuple[Op, ...] = (*BLOCK, *STACK)
# No stack is asked for with a cache, with padding, with as many key heads as query heads, with GELU, or with biases.
ROPE: tuple[Op, ...] = ("rope", *BLOCKS)
ATTENTION: tuple[Op, ...] = ("attention", *BLOCKS)
MASKED: tuple[Op, ...] = ("attention", *BLOCK)
SWIGLU: tuple[Op, ...] = ("swiglu", *BLOCKS)
GELU: tuple[Op, ...] = ("gelu", *BLOCK)


@dataclass(frozen=True, eq=False)
class Mistake:
    """One thing done wrong.

    id, sentence
        What it is called, and what a report says was done.
    alter
        What becomes of a norm (`Norm`) or a composite op (`Composite`) that is laid open.
    effect
        What it does to the numbers, and what hides it.
    evidence
        Where it was seen: an issue of the project named, or a statement of how it comes about.
    hidden
        The ops, dtypes, or ops in a dtype ("op/dtype"), in which no case can show it, each with the reason; wherever else it
        can be made some case rejects it.
    needs_taps
        Those in which a block's outputs cannot show it, each with the reason, but an exported intermediate does.
    dialect
        Whether it is what another dialect does, and right there.
    found
        Whether it was made from a port's own numbers, and so fits them better than a mistake of the catalogue would.
    """

    id: str
    sentence: str
    alter: Callable[[Any], Any]
    effect: str
    evidence: str = "planted: a slip of the pen that a test must see"
    ops: tuple[Op, ...] = ALL_NORMS
    hidden: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    dialect: bool = False
    needs_taps: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    found: bool = False

    def altered(self, case: Case, seed: int) -> Norm | Composite:
        """The case's op laid open, with the mistake in it."""
        if isinstance(case, BlockCase):
            return self.alter(true_composite(case, seed))
        assert isinstance(case, NormCase)
        return self.alter(true_norm(case, seed))

    def backwards(self, case: NormCase, seed: int) -> tuple[Backward, ...]:
        """The ways to write its backward pass; all are one where the forward pass is the true one."""
        true = true_norm(case, seed)
        return backwards(true, self.alter(true))

    @lru_cache(maxsize=KEPT)  # noqa: B019 - the catalogue lives as long as the program
    def outputs(self, case: Case, seed: int = 0, backward: Backward = "autograd") -> dict[str, Expected]:
        """What the case would expect if this were right; a composite op's backward pass is always its own."""
        altered = self.altered(case, seed)
        if isinstance(altered, Composite):
            return composite_outputs(altered, seed, self.values(case, seed))
        outputs = outputs_of(altered, backward)
        if not (isinstance(case, NormCase) and case.exact):
            return outputs
        # What the mistake leaves alone is as exact as it was: an interval around it would explain any error.
        true = golden(case, seed).outputs
        return {name: true[name] if _agree(true[name].value, made.value) else made for name, made in outputs.items()}

    @lru_cache(maxsize=KEPT)  # noqa: B019
    def in_orders(self, case: NormCase, seed: int) -> tuple[dict[str, Expected], ...]:
        """What the case would expect in each usual order of summation, where a sum in low precision depends on it."""
        altered = self.alter(true_norm(case, seed))
        if not altered.arithmetic.sums:
            return ()
        return tuple(outputs_in_order(altered, backward, order) for backward in BACKWARDS for order in ORDERS)

    @lru_cache(maxsize=KEPT)  # noqa: B019
    def values(self, case: Case, seed: int) -> dict[str, Array]:
        """A composite op's outputs, exactly, if this were right."""
        altered = self.altered(case, seed)
        assert isinstance(altered, Composite)
        return run(altered, Machine(), seed)[1]

    def taps(self, case: BlockCase, seed: int, taps: dict[str, Array]) -> dict[str, Expected]:
        """What would be expected of the intermediates that it alters, given what a port fed to each, if this were right."""
        true = true_composite(case, seed)
        altered: Composite = self.alter(true)
        names = altered_taps(true.program, altered.program)
        stages = (stage for stage in altered.program.stages if stage.name in names or stage.local_name in HIDDEN)
        return expected_taps(case, Program(tuple(stages)), golden(case, seed).inputs, taps)

    def exact(self, case: Case) -> bool:
        """Whether its numbers are known up to honest noise: no sum depends on its order by more than that."""
        return case.op in self.ops and (isinstance(case, BlockCase) or self._exact(case.op, case.dtype))

    @cache  # noqa: B019
    def _exact(self, op: str, dtype: str) -> bool:
        norm = true_norm(next(case for case in NORM_CASES if (case.op, case.dtype) == (op, dtype)), 0)
        return self.alter(norm).arithmetic == norm.arithmetic

    def hidden_in(self, op: Op, dtype: str) -> str:
        """Why no case of an op and a dtype can show it; empty if one does."""
        return _reason(self.hidden, op, dtype)

    def needs_taps_in(self, op: Op, dtype: str) -> str:
        """Why no output of an op and a dtype can show it, though a tap does; empty if one does."""
        return _reason(self.needs_taps, op, dtype)


def _agree(exact: Array, made: Array) -> bool:
    """Whether two evaluations in float64 are of the same numbers."""
    return exact.shape == made.shape and bool(np.allclose(made, exact, rtol=1e-12, atol=0.0))


def _reason(reasons: Mapping[str, str], op: Op, dtype: str) -> str:
    return reasons.get(f"{op}/{dtype}", reasons.get(op, reasons.get(dtype, "")))


def both(first: Mistake, second: Mistake) -> Mistake:
    """Two mistakes made at once."""
    return Mistake(
        f"{first.id} + {second.id}",
        f"{first.sentence}; and {second.sentence}",
        lambda norm: second.alter(first.alter(norm)),
        f"{first.effect} {second.effect}",
        f"{first.evidence}; {second.evidence}",
        tuple(op for op in first.ops if op in second.ops),
    )
