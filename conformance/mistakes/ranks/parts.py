"""An axis in parts, one for each rank, and the sums over them."""

from dataclasses import dataclass
from functools import reduce

import numpy as np

from conformance.numbers.rounding import round_to
from conformance.ops.norms.anatomy import Norm
from conformance.port.parts import bounds

Array = np.ndarray


@dataclass(frozen=True)
class Parts:
    """How so many ranks split the axis that a norm's statistics are over: its features; of BatchNorm its rows, by the first."""

    norm: Norm
    ranks: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """What each rank has of it."""
        return tuple(part.stop - part.start for part in bounds(self.norm.x.shape[self._axis], self.ranks))

    @property
    def even(self) -> bool:
        """Whether each has as much."""
        return len(set(self.sizes)) == 1

    @property
    def ratio(self) -> Array:
        """How many times as large the whole is as an element's part, for every element; it broadcasts against x."""
        sizes = np.repeat(self.sizes, self.sizes).astype(self.norm.x.dtype)
        ratio = self.norm.x.shape[self._axis] / sizes
        return ratio.reshape(-1, *[1] * (self.norm.x.ndim - 1)) if self.norm.batch else ratio

    @property
    def weight(self) -> Array:
        """What an element counts in a mean of the ranks' means, where it should count one."""
        return self.ratio / self.ranks

    def sum(self, terms: Array) -> Array:
        """The sum over all parts, [*batch, 1], or of BatchNorm [1.., d]."""
        return np.sum(terms, axis=self.norm.axes, keepdims=True)

    def means(self, terms: Array) -> Array:
        """For every element the mean over its own part."""
        means = [np.mean(part, axis=self.norm.axes, keepdims=True) + np.zeros_like(part) for part in self._each(terms)]
        return np.concatenate(means, axis=self._axis)

    def own(self, terms: Array) -> Array:
        """For every element the sum over its own part, made as large as that over all."""
        return self.means(terms) * (terms.size / self.sum(terms).size)

    def in_storage(self, terms: Array) -> Array:
        """The sum over all parts, each rounded to x's dtype, and the total with every one."""

        def rounded(a: Array) -> Array:
            return round_to(a.astype(np.float64), self.norm.case.dtype).astype(terms.dtype)

        return reduce(lambda total, each: rounded(total + each), [rounded(self.sum(part)) for part in self._each(terms)])

    def _each(self, terms: Array) -> list[Array]:
        """The parts that are not empty."""
        each = [slice_ for slice_ in bounds(terms.shape[self._axis], self.ranks) if slice_.start < slice_.stop]
        return [terms[slice_] if self.norm.batch else terms[..., slice_] for slice_ in each]

    @property
    def _axis(self) -> int:
        return 0 if self.norm.batch else -1
