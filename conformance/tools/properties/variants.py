"""A question to a port, and the variants of it whose answers follow from the first.

No golden says what a variant's answer is: the first answer does, mapped, or what another process answers to the same.
The golden gives the widths of the intervals.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from conformance.numbers.rounding import DTYPES, HALF
from conformance.ops.cases import Names, is_of
from conformance.ops.draw import Draw
from conformance.ops.golden import Golden, golden
from conformance.ops.norms.cases import ROW_NORM_CASES, NormCase
from conformance.ops.norms.inputs import inputs
from conformance.question.dialects import HALF as HALF_DIALECTS
from conformance.question.dialects import SINGLE

Array = np.ndarray
Map = Callable[[Array], Array]

FEW_ROWS, MANY_ROWS = (7, 9, 97), (8, 32, 768)  # 63 rows of an odd width; 256 rows, of the width of many models
LAYOUTS = {"float32": ("permuted", "sliced", "strided")}  # and expanded; elsewhere only what vector loads get wrong
K = 3  # the powers of two: far enough to show, and nothing leaves float16's range
SPREAD = 0.62  # of x in many rows: rstd is near the golden ratio, far from the simple fractions that round alike
STRIDE = 5  # of the permutation of the 63 rows, coprime to their number
TIMES = 12  # that a question is asked: a port that is right ten times and wrong from then on is asked again


@dataclass(frozen=True)
class Variant:
    """A second question. `follows` maps an output's first answer to what it must be now.

    `what` says in words what is different. `scaled` outputs leave out what is subnormal before or after, and so not exact.
    Where `apart`, the answer is compared with that of a process which was not asked the first question.
    """

    property: str
    what: str
    case: NormCase
    given: dict[str, Array]
    follows: dict[str, Map] = field(default_factory=dict)
    scaled: bool = False
    other_mode: bool = False
    apart: bool = False


@dataclass(frozen=True)
class Question:
    """A case as it is asked first, the golden of its inputs, and the variants.

    Where `measured`, the case has many rows: they are asked in parts too, and y's row scale and whole tensors are judged.
    """

    case: NormCase
    golden: Golden
    variants: tuple[Variant, ...]
    measured: bool = False


def kinds(op: Names = (), dtype: Names = ()) -> tuple[NormCase, ...]:
    """One case for every op, dialect and dtype that is asked about: the table's `random`, where a row of the table is."""
    dialects = {each: HALF_DIALECTS if each in HALF else SINGLE for each in DTYPES}
    asked = (case for case in ROW_NORM_CASES if is_of(case, op, dtype))
    return tuple(case for case in asked if case.name == "random" and case.dialect in dialects[case.dtype])


def questions(kind: NormCase, seed: int) -> Iterator[Question]:
    """Everything that is asked about one kind."""
    few = replace(kind, name="63_rows_of_97", shape=FEW_ROWS, dy_scale=64.0)
    given = golden(few, seed).inputs
    yield Question(few, golden(few, seed), (*_something_else(few, given, seed), *_of_few_rows(few, given)))
    near_eps = replace(few, name="63_rows_near_eps", x=Draw(scale=float(np.sqrt(few.eps))), dy_scale=1.0)
    yield Question(near_eps, golden(near_eps, seed), (_scaled_x(near_eps, golden(near_eps, seed).inputs),))
    many = replace(kind, name="256_rows_of_768", shape=MANY_ROWS, x=Draw(scale=SPREAD))
    yield Question(many, golden(many, seed), tuple(_of_many_rows(many, golden(many, seed).inputs, seed)), measured=True)
    if kind.dtype not in LAYOUTS:
        return
    expanded = replace(few, name="7_times_9_rows", layout="expanded")
    asked = replace(expanded, layout="contiguous")
    again = Variant("layout", "expanded", expanded, golden(expanded, seed).inputs, _same(expanded.outputs))
    yield Question(asked, golden(expanded, seed), (again,))


def _same(outputs: dict[str, str] | tuple[str, ...]) -> dict[str, Map]:
    return dict.fromkeys(outputs, lambda output: output)


def _times(exponents: dict[str, int]) -> dict[str, Map]:
    return {name: lambda output, k=k: np.ldexp(output, k) for name, k in exponents.items()}


def _scale(given: dict[str, Array], *names: str) -> dict[str, Array]:
    """The inputs with some of them times 2^K, which is exact."""
    return given | {name: given[name] * given[name].dtype.type(2**K) for name in names if name in given}


def _something_else(case: NormCase, given: dict[str, Array], seed: int) -> Iterator[Variant]:
    """Other values of the same shape: of every tensor, of one of them, of one row; between them the first question again."""
    other = inputs(case, seed + 1)
    parameters = {name: other[name] for name in ("weight", "bias") if name in other}
    last_row = given["x"].copy()
    last_row[-1, -1] = other["x"][-1, -1]
    asked = {
        "other values": other,
        "another dy": given | {"dy": other["dy"]},
        "other parameters": given | parameters,
        "another last row of x": given | {"x": last_row},
    }
    same = _same(case.outputs)
    for what, values in asked.items():
        yield Variant("stateless", f"asked with {what}", case, values, same, apart=True)
        yield Variant("repeatable", f"asked again after {what}", case, given, same)
    for time in range(len(asked) + 2, TIMES + 1):
        yield Variant("repeatable", f"asked for the {time}th time", case, given, same)
    yield Variant("stateless", f"asked with other values after {TIMES} times", case, other, same, apart=True)


def _of_few_rows(case: NormCase, given: dict[str, Array]) -> Iterator[Variant]:
    gradients = {name: K for name in case.outputs if name != "y"}
    yield Variant("scale_dy", f"dy times {2**K}", case, _scale(given, "dy"), _times(gradients), scaled=True)
    exponents = {name: K if name in ("y", "dx") else 0 for name in case.outputs}
    scaled = _scale(given, "weight", "bias")
    yield Variant("scale_weight", f"weight and bias times {2**K}", case, scaled, _times(exponents), scaled=True)
    yield _permuted_rows(case, given)
    for layout in LAYOUTS.get(case.dtype, ("sliced",)):
        yield Variant("layout", layout, replace(case, layout=layout), given, _same(case.outputs))
    yield Variant("mode", "in the other mode", case, given, _same(case.outputs), other_mode=True)


def _scaled_x(case: NormCase, given: dict[str, Array]) -> Variant:
    exponents = {name: -K if name == "dx" else 0 for name in case.outputs}
    what = f"x times {2**K}, eps times {4**K}"
    return Variant("scale_x", what, replace(case, eps=case.eps * 4**K), _scale(given, "x"), _times(exponents), scaled=True)


def _permuted_rows(case: NormCase, given: dict[str, Array]) -> Variant:
    def permute(a: Array) -> Array:
        rows = a.reshape(-1, a.shape[-1])
        return rows[np.arange(len(rows)) * STRIDE % len(rows)].reshape(a.shape)

    permuted = given | {name: permute(given[name]) for name in ("x", "dy")}
    return Variant("row_order", "with its rows permuted", case, permuted, dict.fromkeys(("y", "dx"), permute))


def _of_many_rows(case: NormCase, given: dict[str, Array], seed: int) -> Iterator[Variant]:
    """The same twice, something else of the same shape, the same again; and the rows in reverse."""
    same = _same(case.outputs)
    yield Variant("repeatable", "asked again", case, given, same)
    yield Variant("stateless", "asked with other values", case, inputs(case, seed + 1), same, apart=True)
    yield Variant("repeatable", "asked again after other values", case, given, same)

    def reverse(a: Array) -> Array:
        return np.ascontiguousarray(a[::-1, ::-1])

    reversed_ = given | {name: reverse(given[name]) for name in ("x", "dy")}
    yield Variant("row_order", "with its rows in reverse", case, reversed_, dict.fromkeys(("y", "dx"), reverse))
