"""A case or a mistake in words and figures."""

from collections.abc import Iterable, Mapping

import numpy as np

from conformance.judging.compare import compare_output
from conformance.judging.simulation import numbers
from conformance.mistakes import Mistake
from conformance.numbers.rounding import DTYPES, DType
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.ops.norms.cases import NORMS
from conformance.question.case import Case
from conformance.tools.clauses import broken_by, clauses_of
from conformance.tools.properties.properties import Property


def explain_case(case: Case) -> str:
    """What a case exposes, how it is drawn, and how far each of its outputs may be off, in units of its largest value."""
    expected = golden(case)
    inputs = ", ".join(f"{name} {array.dtype.name}{list(array.shape)}" for name, array in expected.inputs.items())
    lines = [
        case.id,
        f"  exposes   {case.exposes}",
        f"  dialect   {case.dialect.sentence}",
        f"  clauses   {_in_spec(clauses_of(case))}",
        f"  inputs    {inputs}",
        *(f"  {name:9} {words}" for name, words in case.drawn.items()),
        f"  fixture   {f'{case.id}.safetensors' if case.has_fixture else 'none: a large case, computed live'}",
        "  outputs",
    ]
    for name, output in expected.outputs.items():
        lower, upper = output.interval()
        finite = np.isfinite(output.value)
        width = np.max((upper - lower)[finite], initial=0.0)
        single = np.mean((lower == upper)[finite]) if finite.any() else 1.0
        lines.append(
            f"    {name:12} {output.dtype}{list(output.value.shape)}: "
            f"widest interval {width:.2g}, a single value admitted in {single:.0%} of elements"
        )
    lines.append(f"  run       conformance run --case '{case.id}'")
    return "\n".join(lines)


def explain_mistake(mistake: Mistake) -> str:
    """What a mistake alters, and in which dtypes and small cases it can be seen, and how plainly."""
    lines = [
        mistake.id,
        f"  {mistake.sentence}",
        f"  alters    {', '.join(mistake.change)}",
        f"  effect    {mistake.effect}",
        f"  evidence  {mistake.evidence}",
        f"  breaks    {_in_spec(broken_by(mistake))}",
        f"  ops       {', '.join(mistake.ops)}",
    ]
    lines += [f"  {dtype:8}  {_seen(mistake, dtype)}" for dtype in DTYPES if any(_cases(mistake, dtype))]
    return "\n".join(lines)


def _in_spec(clauses: Iterable[str]) -> str:
    """Clauses by where they are written, in docs/."""
    return ", ".join(f"spec.md#{clause}" for clause in clauses)


def _seen(mistake: Mistake, dtype: DType) -> str:
    """How many cases of a dtype reject a mistake, and which most plainly; or why none does."""
    small, large = _cases(mistake, dtype)
    ratios = _rejections(mistake, small)
    if ratios:
        return _rejected(ratios, "cases", len(small))
    ops: list[str] = [op for op in mistake.ops if any(case.op == op for case in small)]
    alone = [reason for op in ops if (reason := mistake.needs_taps_in(op, dtype))]
    reasons = alone or [mistake.hidden_in(op, dtype) for op in ops]
    if all(reasons):
        return f"{'seen by taps alone' if alone else 'hidden'}: {' / '.join(dict.fromkeys(reasons))}"
    return _rejected(_rejections(mistake, large), "large cases", len(large))


def _cases(mistake: Mistake, dtype: DType) -> tuple[list[Case], list[Case]]:
    """The cases of a mistake's ops in a dtype: the small ones, and the norms' large ones, which take longer to try."""
    cases = [case for case in CASES if case.op in mistake.ops and case.dtype == dtype]
    small = [case for case in cases if case.has_fixture or case.op not in NORMS]
    return small, [case for case in cases if case not in small]


def _rejections(mistake: Mistake, cases: Iterable[Case]) -> dict[Case, float]:
    """The cases that reject a mistake, each with its error ratio."""
    return {case: ratio for case in cases if (ratio := _mistaken_ratio(mistake, case)) > 1}


def _rejected(ratios: Mapping[Case, float], what: str, count: int) -> str:
    if not ratios:
        return f"rejected by none of {count} {what}"
    clearest = max(ratios, key=lambda case: ratios[case])
    return f"rejected by {len(ratios)} of {count} {what}, most plainly by {clearest.id}"


def explain_property(property_: Property) -> str:
    """What a property says, and what it means where it is violated."""
    required = "to the bit" if property_.exact else "but for rounding"
    required += ", and to the bit with --bitwise" if property_.served else ""
    return "\n".join(
        [
            property_.id,
            f"  {property_.sentence}",
            f"  required  {required}",
            f"  violated  {property_.consequence}",
            f"  run       conformance properties --property {property_.id}",
        ]
    )


def _mistaken_ratio(mistake: Mistake, case: Case) -> float:
    """The error ratio of the mistake's own numbers."""
    expected, made = golden(case).outputs, numbers(mistake, case)
    return max(compare_output(name, expected[name], made[name]).ratio for name in case.outputs)
