"""The statistics, and the means of dx, where the axis that they are over is split: features, or of BatchNorm rows."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from conformance.mistakes.mistake import BATCH, LAYER, ROWS, Change, Mistake, Of
from conformance.mistakes.ranks.parts import Parts
from conformance.numbers.rounding import HALF
from conformance.ops.norms.batch_norm import BatchNormCase
from conformance.ops.norms.steps import Steps
from conformance.ops.norms.values import by_feature
from conformance.question.case import split

Array = np.ndarray
Terms = Callable[[Array], Array]
Where = Callable[[Parts], bool]

FORWARD, BACKWARD = ("mean", "squares"), ("projection", "shift")


def _always(parts: Parts) -> bool:
    return True


def of_statistics(count: int, who: str) -> Iterator[Mistake]:
    """Of the norms of rows, and of BatchNorm."""
    yield from _Among(count, who, "features", ROWS, LAYER).mistakes()
    yield from _Among(count, who, "rows", BATCH, BATCH).mistakes()


class _Among:
    """What so many ranks do wrong that split what a statistic is over, in some ops; in those `centred` its mean, too."""

    def __init__(self, count: int, who: str, noun: str, ops: tuple[str, ...], centred: tuple[str, ...]) -> None:
        self.count, self.who, self.noun, self.ops, self.centred = count, who, noun, ops, centred

    def mistakes(self) -> Iterator[Mistake]:
        who, noun, count = self.who, self.noun, self.count
        of_all = f"over the {noun} of all {who}s"
        yield from self.by_pass(
            f"of_own_{noun}",
            f"a mean over one {who}'s own {noun} stands for one {of_all}",
            {**self.sums(FORWARD, lambda parts: parts.own), **self.running_of_first()},
            self.sums(BACKWARD, lambda parts: parts.own),
            "Each part is normalised by itself.",
            "exllamav3#141, mlx-lm#898",
        )
        unweighted = {"summed": self.of(_unweighted), "squares": self.of(lambda parts: partial(_unweighted_squares, parts))}
        yield from self.by_pass(
            f"mean_of_means_of_{noun}",
            f"the {who}s' means are averaged as if each had as many {noun}",
            unweighted,
            self.sums(BACKWARD, lambda parts: lambda terms: parts.sum(terms * parts.weight)),
            "Small parts count too much; even ones hide it.",
            "pytorch#22192",
            _uneven,
        )
        yield self.made(
            f"mean_of_means_of_{noun}_by_autograd",
            f"the {who}s' means are averaged as if each had as many {noun}",
            unweighted | {"paths": self.of(_paths_of_unweighted)},
            "Small parts count too much; even ones hide it.",
            "pytorch#22192, and its derivative",
            _uneven,
            self.centred,
        )
        yield from self.by_pass(
            f"over_own_number_of_{noun}",
            f"a sum {of_all} is divided by the number of one {who}'s own",
            {
                **dict.fromkeys(("divisor", "mean_divisor"), self.of(lambda parts: lambda n: n / parts.ratio)),
                "squares": self.of(lambda parts: partial(_squares_about_larger_mean, parts)),
            },
            self.sums(BACKWARD, lambda parts: lambda terms: parts.sum(terms) * parts.ratio),
            f"The mean square is too large by the number of {who}s.",
            "planted: x.shape[-1], which is a part's",
        )
        yield from self.by_pass(
            f"sums_in_storage_dtype_of_{noun}",
            f"the {who}s' sums over their {noun} are rounded to x's dtype, and then summed",
            self.sums(FORWARD, lambda parts: parts.in_storage),
            self.sums(BACKWARD, lambda parts: parts.in_storage),
            "Every statistic is off by a factor of its own.",
            "planted: an all-reduce in the dtype of the activations",
            lambda parts: parts.norm.case.dtype in HALF,
        )
        yield self.made(
            f"mean_of_rstds_of_{noun}",
            f"the {who}s' rstds are averaged, not their mean squares",
            {"squares": self.of(lambda parts: partial(_as_if_rstds_were_averaged, parts))},
            "x_hat is too large, by what the parts differ.",
            "planted: a mean after the root",
        )
        averaged = {"squares": self.of(lambda parts: partial(_squares_about_own_mean, parts))}
        for also, change in (("", averaged), ("_and_means", averaged | {"summed": self.of(_unweighted)})):
            yield self.made(
                f"mean_of_variances{also}_of_{noun}",
                f"the {who}s' variances, each about its own mean, are averaged without the distance of these means",
                change,
                "The variance is too small, by what the means of the parts differ.",
                "planted: an all-reduce of variances",
                _uneven if also else _always,
                self.centred,
            )
        yield self.made(
            f"eps_of_every_{who}_over_{noun}",
            f"eps is added by every {who}, before the sum: times {count}",
            {"eps": Of(lambda norm: count * norm.eps)},
            "What is near eps comes out too small.",
            "planted: an all-reduce of mean square and eps",
        )
        if self.ops == BATCH:
            yield self.made(
                "running_var_unbiased_by_own_rows",
                f"the running variance is made unbiased by the number R of one {who}'s own rows, R/(R - 1)",
                {"batch.correction": self.of(_correction_of_first)},
                "The running variance is too large by some 1/R of the new share.",
                "planted: the correction of a BatchNorm that knows of no others",
                _unbiased,
            )
        else:
            yield self.made(
                "parameters_of_first_features",
                f"every {who} has the weight and bias of the first one's features",
                {name: self.of(partial(_first_again, name)) for name in ("weight", "bias")},
                "The first part is right.",
                "planted: parameters that are broadcast, not split",
                lambda parts: parts.even,
            )

    def by_pass(
        self,
        id_: str,
        said: str,
        forward: Change,
        backward: Change,
        effect: str,
        evidence: str,
        also: Where = _always,
    ) -> Iterator[Mistake]:
        """The same in both passes, in the forward pass, and in dx alone."""
        yield self.made(f"statistics_and_dx_{id_}", said, {**forward, **backward}, effect, evidence, also)
        yield self.made(f"statistics_{id_}", f"in the statistics {said}; not so in dx", forward, effect, evidence, also)
        yield self.made(f"dx_{id_}", f"in dx {said}", backward, "y is right.", evidence, also)

    def made(
        self,
        id_: str,
        said: str,
        change: Change,
        effect: str,
        evidence: str,
        also: Where = _always,
        ops: tuple[str, ...] = (),
    ) -> Mistake:
        """A mistake where the axis is split, and its parts are such as it needs."""

        def where(norm: Any) -> bool:
            given = norm.batch is not None and not norm.batch.training
            return split(norm.case.layout) == self.noun and not given and also(Parts(norm, self.count))

        return Mistake(id_, said, change, effect, evidence, ops or self.ops, where=where)

    def of(self, make: Callable[[Parts], Any]) -> Of:
        return Of(lambda norm: make(Parts(norm, self.count)))

    def sums(self, names: tuple[str, ...], make: Callable[[Parts], Terms]) -> dict[str, Any]:
        return {f"sums.{name}": self.of(make) for name in names}

    def running_of_first(self) -> Change:
        """The running statistics of the first rank, over its own rows."""
        if self.ops != BATCH:
            return {}
        return {"batch.statistic": lambda each, d: by_feature(each[:1], d), "batch.correction": self.of(_correction_of_first)}


def _uneven(parts: Parts) -> bool:
    """Whether some have more than others, but all have some."""
    return not parts.even and all(parts.sizes)


def _unbiased(parts: Parts) -> bool:
    return isinstance(parts.norm.case, BatchNormCase) and parts.norm.case.unbiased


def _unweighted(parts: Parts) -> Terms:
    return lambda x: x * parts.weight


def _unweighted_squares(parts: Parts, s: Steps) -> tuple[Array, Array]:
    return parts.weight * np.square(s.centred), 2 * parts.weight * s.centred


def _paths_of_unweighted(parts: Parts) -> Callable[[Steps, Array, Array, Array], tuple[Array, Array, Array]]:
    return lambda s, direct, through_mean, through_rstd: (direct, parts.weight * through_mean, through_rstd)


def _squares_about_larger_mean(parts: Parts, s: Steps) -> tuple[Array, Array]:
    """The squares about a mean that is too large: moving an element moves that mean as much more."""
    left = parts.ratio * parts.sum(s.centred) / (s.centred.size / parts.sum(s.centred).size)
    return np.square(s.centred), 2 * (s.centred - left if parts.norm.centre_statistics else s.centred)


def _squares_about_own_mean(parts: Parts, s: Steps) -> tuple[Array, Array]:
    off = s.x - parts.means(s.x)
    return parts.weight * np.square(off), 2 * parts.weight * off


def _as_if_rstds_were_averaged(parts: Parts, s: Steps) -> tuple[Array, Array]:
    """What has the mean m of which (m + eps)^-1/2 is the mean of the parts' own rstds."""
    rstds = (parts.means(np.square(s.centred)) + parts.norm.eps) ** -0.5
    share = parts.sum(rstds).size / rstds.size
    mean = share * parts.sum(rstds * parts.weight)
    slope = s.centred * parts.weight * (rstds / mean) ** 3
    through_mean = share * parts.sum(slope) if parts.norm.centre_statistics else 0.0
    return mean**-2.0 - parts.norm.eps + np.zeros_like(s.x), 2 * (slope - through_mean)


def _correction_of_first(parts: Parts) -> Callable[[int], float]:
    """What makes a biased variance the one that runs, for the first part's share of the rows."""
    assert isinstance(parts.norm.case, BatchNormCase)
    correction, share = parts.norm.case.correction, parts.sizes[0] / sum(parts.sizes)
    return lambda rows: correction(rows * share)


def _first_again(name: str, parts: Parts) -> Array:
    parameter = getattr(parts.norm, name)
    return np.resize(parameter[: parts.sizes[0]], parameter.shape)
