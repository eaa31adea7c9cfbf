"""What a mistake is, and what two of them together are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache

from conformance.anatomy import NOTHING, Backward, Norm, outputs_of, true_norm
from conformance.cases import CASES, OPS, Case, Op
from conformance.golden import Expected

KEPT = 4096  # altered goldens kept, since every port's failures are held against the same ones

RMS: tuple[Op, ...] = ("rms_norm",)
LAYER: tuple[Op, ...] = ("layer_norm",)


@dataclass(frozen=True, eq=False)
class Mistake:
    """One thing done wrong.

    id, sentence
        What it is called, and what a report says was done.
    alter
        What becomes of a `Norm` that is laid open.
    effect
        What it does to the numbers, and what hides it.
    evidence
        Where it was seen: an issue of the project named, or a statement of how it comes about.
    hidden
        The dtypes in which no case can show it, each with the reason; every other dtype has a case that rejects it.
    dialect
        Whether it is what another dialect does, and right there.
    """

    id: str
    sentence: str
    alter: Callable[[Norm], Norm]
    effect: str
    evidence: str = "planted: a slip of the pen that a test must see"
    ops: tuple[Op, ...] = OPS
    hidden: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    dialect: bool = False

    @lru_cache(maxsize=KEPT)  # noqa: B019 - the catalogue lives as long as the program
    def outputs(self, case: Case, seed: int = 0, backward: Backward = "autograd") -> dict[str, Expected]:
        """What the case would expect if this were right."""
        return outputs_of(self.alter(true_norm(case, seed)), backward)

    def exact(self, case: Case) -> bool:
        """Whether its numbers are known up to honest noise: no sum depends on its order by more than that."""
        return self._exact(case.op, case.dtype)

    @cache  # noqa: B019
    def _exact(self, op: str, dtype: str) -> bool:
        norm = true_norm(next(case for case in CASES if (case.op, case.dtype) == (op, dtype)), 0)
        return self.alter(norm).arithmetic == norm.arithmetic

    def hidden_in(self, op: Op, dtype: str) -> str:
        """Why no case of an op and a dtype can show it; empty if one does."""
        return self.hidden.get(f"{op}/{dtype}", self.hidden.get(dtype, ""))


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
