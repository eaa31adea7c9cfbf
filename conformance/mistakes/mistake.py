"""What a mistake is, what it changes, and what two of them together are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from conformance.numbers.expected import Expected
from conformance.numbers.memory import Memory
from conformance.numbers.rounding import DTYPES, HALF
from conformance.ops.golden import lay_open
from conformance.ops.norms.steps import NOTHING
from conformance.ops.op import Anatomy, Backward
from conformance.ops.table import OPS
from conformance.question.case import Case

Array = np.ndarray

ALTERED = Memory(2**28)  # altered goldens, since every port's failures are held against the same ones

RMS: tuple[str, ...] = ("rms_norm",)
LAYER: tuple[str, ...] = ("layer_norm",)
BATCH: tuple[str, ...] = ("batch_norm",)
ADDED: tuple[str, ...] = ("add_rms_norm", "add_layer_norm")
QUANTISED: tuple[str, ...] = ("quantised_rms_norm",)
GATED: tuple[str, ...] = ("gated_rms_norm",)
ROWS: tuple[str, ...] = (*RMS, *LAYER)
CENTRED: tuple[str, ...] = (*LAYER, *BATCH)
ALL_NORMS: tuple[str, ...] = (*ROWS, *BATCH)
BLOCK: tuple[str, ...] = ("pre_ln_block",)
STACK: tuple[str, ...] = ("pre_ln_stack",)
BLOCKS: tuple[str, ...] = (*BLOCK, *STACK)
# No stack is asked for with a cache, with padding, with as many key heads as query heads, with GELU, or with biases.
ROPE: tuple[str, ...] = ("rope", *BLOCKS)
ATTENTION: tuple[str, ...] = ("attention", *BLOCKS)
MASKED: tuple[str, ...] = ("attention", *BLOCK)
SWIGLU: tuple[str, ...] = ("swiglu", *BLOCKS)
GELU: tuple[str, ...] = ("gelu", *BLOCK)


@dataclass(frozen=True)
class Of:
    """What becomes of something, where that depends on the op laid open: a function of the op, as it was before the change."""

    make: Callable[[Any], Any]


Change = Mapping[str, Any]
"""What is altered, by name, and what becomes of it.

Of a `Norm` a name is a field, or a path to a part of one, and what becomes of it is its new value:
{"eps": 0.0}, {"divisor": lambda n: n - 1}, {"rounded.rstd": "storage"}.

Of a `Composite` a name is a stage, or "*" for all of them, and what becomes of it is a function of the stage that is there;
`conformance.mistakes.block.stages` has those: {"h": reads({"x": "attention_norm"})}.

Where that depends on the op laid open, it is `Of` a function of the op: {"eps": Of(lambda norm: 2 * norm.eps)}.
"""


def everywhere(anatomy: Any) -> bool:
    """In every case."""
    return True


def in_dtypes(*dtypes: str) -> Callable[[Any], bool]:
    """In the cases whose storage dtype is one of these."""
    return lambda anatomy: anatomy.case.dtype in dtypes


in_half = in_dtypes(*HALF)


def all_but(*dtypes: str) -> tuple[str, ...]:
    """The other dtypes that cases are asked in."""
    return tuple(dtype for dtype in DTYPES if dtype not in dtypes)


@dataclass(frozen=True, eq=False)
class Mistake:
    """One thing done wrong.

    id, sentence
        What it is called, and what a report says was done.
    change
        What it alters, by name, and what that becomes.
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
    where
        Of an op laid open, whether the mistake is made in it; elsewhere nothing is altered.
    """

    id: str
    sentence: str
    change: Change
    effect: str
    evidence: str = "planted: a slip of the pen that a test must see"
    ops: tuple[str, ...] = ALL_NORMS
    hidden: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    dialect: bool = False
    needs_taps: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    found: bool = False
    where: Callable[[Any], bool] = everywhere

    def alter(self, anatomy: Any) -> Any:
        """An op laid open, with the mistake in it."""
        if not self.where(anatomy):
            return anatomy
        return anatomy.changed({name: to.make(anatomy) if isinstance(to, Of) else to for name, to in self.change.items()})

    def altered(self, case: Case, seed: int) -> Any:
        """The case's op laid open, with the mistake in it."""
        return self.alter(lay_open(case, seed))

    def backwards(self, case: Case, seed: int) -> tuple[Backward, ...]:
        """The ways to write its backward pass; all are one where the forward pass is the true one."""
        true = lay_open(case, seed)
        altered: Anatomy = self.alter(true)
        return altered.backwards(true)

    @ALTERED.keeps
    def outputs(self, case: Case, seed: int = 0, backward: Backward = "autograd") -> dict[str, Expected]:
        """What the case would expect if this were right."""
        return self.altered(case, seed).outputs(backward)

    @ALTERED.keeps
    def in_orders(self, case: Case, seed: int) -> tuple[dict[str, Expected], ...]:
        """What the case would expect in each usual order of summation, where a sum in low precision depends on it."""
        return self.altered(case, seed).in_orders()

    @ALTERED.keeps
    def values(self, case: Case, seed: int) -> dict[str, Array]:
        """The outputs, exactly, if this were right."""
        return self.altered(case, seed).values()

    def taps(self, case: Case, seed: int, exported: dict[str, Array]) -> dict[str, Expected]:
        """What would be expected of the intermediates that it alters, given what a port fed to each, if this were right."""
        true = lay_open(case, seed)
        altered: Anatomy = self.alter(true)
        return altered.expected_taps(true, exported)

    def can_be_made_in(self, op: str) -> bool:
        """Whether an op can have it: one that it is asked of, or one that is built on such."""
        return any(each in self.ops for each in (op, *OPS[op].built_on))

    def exact(self, case: Case) -> bool:
        """Whether its numbers are known up to honest noise: no sum depends on its order by more than that."""
        return self.can_be_made_in(case.op) and self._exact(case.op, case.dtype)

    @cache  # noqa: B019 - the catalogue lives as long as the program
    def _exact(self, op: str, dtype: str) -> bool:
        altered: Anatomy = self.altered(next(case for case in OPS[op].cases if case.dtype == dtype), 0)
        return altered.is_exact

    def hidden_in(self, op: str, dtype: str) -> str:
        """Why no case of an op and a dtype can show it; empty if one does."""
        return _reason(self.hidden, op, dtype)

    def needs_taps_in(self, op: str, dtype: str) -> str:
        """Why no output of an op and a dtype can show it, though a tap does; empty if one does."""
        return _reason(self.needs_taps, op, dtype)


def _reason(reasons: Mapping[str, str], op: str, dtype: str) -> str:
    return reasons.get(f"{op}/{dtype}", reasons.get(op, reasons.get(dtype, "")))


@dataclass(frozen=True, eq=False)
class Pair(Mistake):
    """Two mistakes made at once: the second is made in what the first makes of an op."""

    first: Mistake = field(kw_only=True)
    second: Mistake = field(kw_only=True)

    def alter(self, anatomy: Any) -> Any:
        """An op laid open, with both mistakes in it."""
        return self.second.alter(self.first.alter(anatomy))


def both(first: Mistake, second: Mistake) -> Mistake:
    """Two mistakes made at once."""
    return Pair(
        f"{first.id} + {second.id}",
        f"{first.sentence}; and {second.sentence}",
        {**first.change, **second.change},
        f"{first.effect} {second.effect}",
        f"{first.evidence}; {second.evidence}",
        tuple(op for op in first.ops if op in second.ops),
        first=first,
        second=second,
    )
