"""An eps that is not the one asked for, found in the numbers: a constant, a multiple of what is asked, a least, a most."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import frexp

import numpy as np

from conformance.judging.fitting import found_factor
from conformance.judging.fitting.found_factor import Unit
from conformance.mistakes.mistake import ALL_NORMS, Change, Mistake, Of
from conformance.mistakes.norms import epsilon
from conformance.numbers.expected import Expected
from conformance.numbers.rounding import ulp
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import Norm, true_norm
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.steps import Steps
from conformance.ops.norms.values import mean

Array = np.ndarray

LARGEST = 10_000  # elements of an output that is looked at
TRIED = 4  # failing outputs that are held against the intervals of the altered norm
SHARE = 0.9  # of the elements of each that must lie in them
SPREAD = 1.5  # how far the bounds of a number may be apart, as a ratio, for it to be found
DIGITS = 7  # that a number may have
NEAREST = 0.02  # to the eps asked for, relative: nobody means less, but squares that are truncated look like it
LARGEST_EPS = 0.02  # above it something else is likelier to have been added to the mean square: padding, say
LARGEST_MULTIPLE = 1000.0  # likewise
POWERS_OF_TWO = tuple(2.0**-k for k in range(1, 64))


@dataclass(frozen=True)
class Rule:
    """eps as a function of the norm that is asked for, its name in an id, and what it is, in words.

    `known` is whether the catalogue has it, under a name of its own.
    """

    id: str
    words: str
    of: Callable[[Norm], float]
    known: bool = False


@dataclass(frozen=True)
class Line:
    """An output as a line: `slope` times the scale of rstd, plus `fixed`, plus what is orthogonal to the slope in each row.

    `growth` is how many times as large its errors are at such a scale.
    """

    slope: Array
    fixed: Array | float
    growth: Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Told:
    """What one output tells of the eps in it: bounds, and an estimate with its weight, the inverse of its squared error.

    The bounds contradict each other where no eps makes such an output.
    """

    lower: float
    upper: float
    estimate: float = 0.0
    weight: float = 0.0

    def over(self, k: float) -> "Told":
        """The same for eps / k."""
        return Told(self.lower / k, self.upper / k, self.estimate / k, self.weight * k**2)

    def admits(self, eps: float) -> bool:
        """Whether this may be the eps."""
        return self.lower <= eps <= self.upper

    def differs(self, eps: float) -> bool:
        """Whether it is another eps, and not nearly this one."""
        return not self.admits(eps) and abs(self.estimate - eps) > NEAREST * eps


NOTHING = Told(-np.inf, np.inf)


@dataclass(frozen=True)
class Found:
    """What the outputs of a group tell of their eps, with the norms that were asked for, and failing outputs that tell most."""

    told: tuple[Told, ...]
    norms: tuple[Norm, ...]
    telling: tuple[Unit, ...]
    seed: int


def found(failing: Sequence[Unit], passing: Sequence[Unit], seed: int) -> Found | None:
    """The eps of a group; none where some failing output has no single one, or all may have the one asked for."""
    told: list[Told] = []
    for unit in failing:
        told.append(measure(unit, seed))
        if told[-1].lower > told[-1].upper:
            return None
    wrong = [(unit, each) for unit, each in zip(failing, told, strict=True) if each.differs(unit[0].eps)]
    if not wrong:
        return None
    wrong.sort(key=lambda pair: abs(pair[1].estimate - pair[0][0].eps) * pair[1].weight ** 0.5, reverse=True)
    told += [measure(unit, seed) for unit in passing]
    norms = tuple(true_norm(case, seed) for case, _ in (*failing, *passing))
    return Found(tuple(told), norms, tuple(unit for unit, _ in wrong[:TRIED]), seed)


def measure(unit: Unit, seed: int) -> Told:
    r"""The eps of one output: least squares give the scale s of each row's rstd, with bounds from honest rounding.

    $$ \mathrm{eps}' = (m + \mathrm{eps}) / s^2 - m $$

    with m the mean square of the row. The rows have one eps, so that it lies between all their bounds.
    """
    case, output = unit
    if output.actual.size > LARGEST or not output.actual.size:
        return NOTHING
    with np.errstate(all="ignore"):
        scale, doubt = _scale_of_rstd(unit, seed)
        with_eps = _rstd(true_norm(case, seed), seed) ** -2.0
        tells = np.isfinite(doubt)
    if not tells.any():
        return NOTHING
    scale, doubt, with_eps = (np.broadcast_to(each, tells.shape)[tells] for each in (scale, doubt, with_eps))
    return _told(scale, doubt, with_eps, case.eps)


def _scale_of_rstd(unit: Unit, seed: int) -> tuple[Array, Array]:
    """The scale of rstd in every row, and how far off honest rounding may make it; not finite where a row tells nothing."""
    case, output = unit
    norm, expected = true_norm(case, seed), golden(case, seed).outputs[output.output]
    line = line_of_y(norm, seed) if output.output == "y" else _line_of_dx(norm, seed)
    square = _mean(norm, np.square(line.slope))
    scale = _mean(norm, (output.actual - line.fixed) * line.slope) / square
    lower, upper = expected.interval()
    noise = (upper - lower) / 2 * line.growth(np.abs(scale)) + ulp(output.actual, expected.dtype)
    return scale, _mean(norm, noise * np.abs(line.slope)) / square


def _told(scale: Array, doubt: Array, with_eps: Array, eps: float) -> Told:
    """The eps of rows with these scales, `with_eps` being what the true root is taken of."""
    mean_square, known = with_eps - eps, scale > doubt
    with np.errstate(all="ignore"):
        low = np.where(scale > -doubt, with_eps / np.square(scale + doubt) - mean_square, np.inf)
        high = np.where(scale > -doubt, np.inf, -np.inf)
        high = np.where(known, with_eps / np.square(scale - doubt) - mean_square, high)
        estimate = (with_eps / np.square(scale) - mean_square)[known]
        weight = np.square(scale[known] ** 3 / (with_eps * doubt)[known])
        total = float(np.sum(weight))
        mean = float(np.sum(weight * estimate)) / total if total else 0.0
    return Told(float(np.max(low)), float(np.min(high)), mean, total)


def line_of_y(norm: Norm, seed: int) -> Line:
    """y as a line in the scale s of rstd: y = s·w·x_hat + b."""
    bias = norm.bias + np.zeros_like(norm.x)
    slope = golden(norm.case, seed).outputs["y"].value - bias
    size = np.abs(slope) + np.abs(bias)
    return Line(slope, bias, lambda scale: np.where(size > 0, (scale * np.abs(slope) + np.abs(bias)) / size, scale))


def _line_of_dx(norm: Norm, seed: int) -> Line:
    """dx = s·rstd·(g − mean(g)) − s³·rstd·x_hat·mean(g·x_hat): what is orthogonal to x_hat is a line in s.

    So is what a stage before the norm makes of it.
    """
    x_hat = golden(norm.case, seed).intermediates["x_hat"]
    slope = norm.after.cotangents(norm.dy, norm.x)[0] if norm.after else norm.dy
    slope = slope * norm.parameters(norm.weight, norm.bias, norm.offset)[0]
    if not (norm.batch and not norm.batch.training):
        slope = slope - (_mean(norm, slope) if norm.centre_values else 0.0)
        along = _mean(norm, slope * x_hat) / _mean(norm, np.square(x_hat))
        slope = slope - x_hat * np.where(np.isfinite(along), along, 0.0)
    slope, fixed = slope * _rstd(norm, seed), np.zeros_like(norm.x)
    if norm.before:
        made = norm.before.before(norm.x).made["dx"]
        slope, fixed = made.of(slope) - made.of(fixed), made.of(fixed)
    return Line(slope, fixed, lambda scale: np.maximum(scale, scale**3))


def _rstd(norm: Norm, seed: int) -> Array:
    """The true rstd of every row, or of the group of every feature."""
    rstd = golden(norm.case, seed).intermediates["rstd"]
    return rstd if norm.group is None else np.repeat(rstd, norm.group, axis=-1)


def _mean(norm: Norm, terms: Array) -> Array:
    return mean(terms, norm.axes, norm.group)


def candidates(group: Found) -> list[Rule]:
    """The rules that a group may have, the catalogue's first; of each kind the plainest number that explains it."""
    kinds = (_constants(group), _multiples(group), _floors(group), _ceilings(group))
    own = (next((rule for rule in rules if explains(rule, group)), None) for rules in kinds)
    return [*KNOWN, *(rule for rule in own if rule)]


def explains(rule: Rule, group: Found) -> bool:
    """Whether every output of a group may have this eps, and the altered norm holds those that tell most of it."""
    if not all(told.admits(rule.of(norm)) for told, norm in zip(group.told, group.norms, strict=True)):
        return False
    return all(_share(unit, rule, group.seed) >= SHARE for unit in group.telling)


def _share(unit: Unit, rule: Rule, seed: int) -> float:
    """Of an output's elements those that lie in the intervals of the norm with this eps."""
    case, output = unit
    altered = _altered(case, seed, rule.of(true_norm(case, seed)))
    return float(np.mean(altered[output.output].admits(output.actual)))


@lru_cache(maxsize=64)
def _altered(case: NormCase, seed: int, eps: float) -> dict[str, Expected]:
    return replace(true_norm(case, seed), eps=eps).outputs("formula")


def _constants(group: Found) -> Iterator[Rule]:
    for eps in _eps(group.told):
        yield Rule(f"of_{eps:.{DIGITS}g}", f"{_in_words(eps)}, whatever is asked for", lambda norm, eps=eps: eps)


def _multiples(group: Found) -> Iterator[Rule]:
    told = [each.over(norm.eps) for each, norm in zip(group.told, group.norms, strict=True)]
    constants = map(found_factor.constant, _numbers(told, found_factor.PLAIN, LARGEST_MULTIPLE))
    for factor in (*found_factor.OF_THE_CASE, *constants):
        words = f"{factor.words} what it should be{factor.note}"
        yield Rule(factor.id, words, lambda norm, factor=factor: factor.of(norm.case) * norm.eps)


def _floors(group: Found) -> Iterator[Rule]:
    raised = [each for each, norm in zip(group.told, group.norms, strict=True) if each.lower > norm.eps]
    for eps in _eps(raised):
        yield Rule(f"at_least_{eps:.{DIGITS}g}", f"at least {_in_words(eps)}", lambda norm, eps=eps: max(norm.eps, eps))


def _ceilings(group: Found) -> Iterator[Rule]:
    lowered = [each for each, norm in zip(group.told, group.norms, strict=True) if each.upper < norm.eps]
    for eps in _eps(lowered):
        yield Rule(f"at_most_{eps:.{DIGITS}g}", f"at most {_in_words(eps)}", lambda norm, eps=eps: min(norm.eps, eps))


def _eps(told: Sequence[Told]) -> list[float]:
    return _numbers(told, POWERS_OF_TWO, LARGEST_EPS)


def _numbers(told: Sequence[Told], plain: Iterable[float], largest: float) -> list[float]:
    """The numbers that lie between all bounds, the plainest first: one digit, a plain number, more digits, the estimate."""
    lower = max((each.lower for each in told), default=-np.inf)
    upper = min((each.upper for each in told), default=np.inf)
    if not 0 < lower <= upper <= min(SPREAD * lower, largest):
        return []
    mean = float(np.average([each.estimate for each in told], weights=[each.weight for each in told]))
    short, *longer = (float(f"{mean:.{digits}e}") for digits in range(DIGITS))
    return [k for k in dict.fromkeys((short, *plain, *longer, mean)) if lower <= k <= upper]


def _in_words(eps: float) -> str:
    mantissa, exponent = frexp(eps)
    if mantissa == 0.5:
        return f"2^{exponent - 1}"
    digits, _, exponent = f"{eps:.{DIGITS - 1}e}".partition("e")
    return f"{float(digits):.{DIGITS}g}e{int(exponent)}"


def _known(mistake: Mistake) -> Rule:
    return Rule(mistake.id, mistake.sentence, lambda norm: mistake.alter(norm).eps, known=True)


KNOWN = tuple(map(_known, epsilon.MISTAKES))


def as_mistake(rule: Rule, outputs: tuple[str, ...]) -> Mistake:
    """The golden with this eps; in its backward pass alone, if y is not among these outputs."""
    if "y" in outputs:
        return _mistake(f"eps_{rule.id}", f"eps is {rule.words}", {"eps": Of(rule.of)})

    def saved(norm: Norm, s: Steps) -> Steps:
        rstd = (s.mean_square + rule.of(norm)) ** -0.5
        return replace(s, rstd=rstd, x_hat=s.shifted * rstd)

    change = {"saved": Of(lambda norm: partial(saved, norm))}
    return _mistake(f"eps_{rule.id}_in_backward", f"in the backward pass eps is {rule.words}", change)


def _mistake(id_: str, sentence: str, change: Change) -> Mistake:
    return Mistake(
        id_, sentence, change, f"{epsilon.SMALL_ROWS}; ordinary rows hide it.", "found in the numbers", ALL_NORMS, found=True
    )
