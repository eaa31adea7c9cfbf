"""What a judge is: a rule that says of one output of one case whether it passes, and who has that rule."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from conformance.numbers.expected import Expected
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORMS, NormCase
from conformance.ops.op import Golden

Array = np.ndarray


@dataclass(frozen=True)
class Question:
    """One output of one case, as a judge is asked about it.

    A judge compares with a run of something else. Here that is the best there is: the exact value, with the roundings of the
    dialect and no other. NaN and infinities are compared before a rule is asked: a rule sees what is finite.
    """

    golden: Golden
    case: NormCase
    output: str

    @property
    def is_gradient(self) -> bool:
        """Whether it is a gradient, and not what the op returns."""
        return self.output not in self.case.made

    @property
    def dtype(self) -> str:
        """The output's."""
        return self.expected.dtype

    @property
    def expected(self) -> Expected:
        """What the kit itself expects."""
        return self.golden.outputs[self.output]

    @cached_property
    def rounded(self) -> Array:
        """The reference as float64, in the output's shape."""
        return self.expected.nearest.astype(np.float64)

    @cached_property
    def finite(self) -> Array:
        """Which elements of the reference are finite."""
        return np.isfinite(self.rounded)

    @cached_property
    def reference(self) -> Array:
        """The finite elements of the reference, one after the other."""
        return self.rounded[self.finite]

    @cached_property
    def exact(self) -> Array:
        """The exact values of the same elements."""
        return np.broadcast_to(self.expected.value, self.rounded.shape)[self.finite]


Rule = Callable[[Question, Array], bool]
"""Whether a judge lets an output pass, given its elements where the reference is finite, as float64."""


@dataclass(frozen=True)
class Judge:
    """A rule and who has it.

    `says` is the rule in words, and `source` where it stands. `ops` are the norms that it is used for, and `asks_gradients`
    says whether it is used for gradients. `own` are its own inputs, as near as a case can have them; none where they are not
    known.
    """

    id: str
    title: str
    source: str
    says: str
    rule: Rule
    ops: tuple[str, ...] = ROW_NORMS
    asks_gradients: bool = True
    own: tuple[NormCase, ...] = field(default=(), repr=False)

    def asks(self, question: Question) -> bool:
        """Whether it would be asked about this output."""
        return question.case.op in self.ops and (self.asks_gradients or not question.is_gradient)

    def passes(self, question: Question, actual: Array) -> bool:
        """Whether it lets an output pass. It is taken to look at dtypes, and at what is not finite, as the best of them do."""
        if actual.dtype.name != question.dtype:
            return False
        wide = actual.astype(np.float64)
        if not np.array_equal(wide[~question.finite], question.rounded[~question.finite], equal_nan=True):
            return False
        finite = wide[question.finite]
        return bool(np.all(np.isfinite(finite))) and self.rule(question, finite)


@cache
def questions(case: NormCase) -> tuple[Question, ...]:
    """All that can be asked about a case."""
    exact = golden(case)
    return tuple(Question(exact, case, output) for output in case.outputs)
