"""Which sentences of docs/spec.md a case tests, and which of them a mistake breaks, by rule.

A clause is a sentence with an anchor of this name there. No case and no mistake is listed: a clause follows from the op, the
outputs, the dialect, the settings and the tensors of a case, and from what a mistake alters.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from conformance.mistakes.mistake import Mistake
from conformance.ops.block.case import CompositeCase
from conformance.ops.norms.cases import NORMS, NormCase
from conformance.question.case import Case, is_split

SPEC = Path(__file__).parents[2] / "docs" / "spec.md"
ANCHOR = re.compile(r'<a id="([^"]+)"></a>')
EDGES = ("zero_rows", "constant_rows", "constant_columns", "nan_row", "inf_row")  # rows that spec.md has a line about

OF_A_PART = {
    **dict.fromkeys(("eps",), "eps"),
    **dict.fromkeys(("offset",), "weight_offset-1"),
    **dict.fromkeys(("rounded", "arithmetic"), "compute-dtype"),
    **dict.fromkeys(("output_modes",), "rounding"),
    **dict.fromkeys(("output_dtypes",), "output-dtype"),
    **dict.fromkeys(("projected", "shift", "paths", "saved", "multiplicand", "cotangent", "backward_weight"), "gradients"),
    **dict.fromkeys(("weight_rows", "bias_rows", "bias_terms"), "gradients"),
    **dict.fromkeys(("written", "read", "of_rows"), "strides"),
}
"""What a mistake alters, by the first part of its name, and the clause that says how it should be."""


@cache
def written() -> tuple[str, ...]:
    """The clauses that docs/spec.md has, in its order; empty where the kit stands without its pages."""
    return tuple(ANCHOR.findall(SPEC.read_text(encoding="utf-8"))) if SPEC.exists() else ()


def clauses_of(case: Case) -> tuple[str, ...]:
    """The clauses that a case tests."""
    return tuple(dict.fromkeys(_of_case(case)))


def _of_case(case: Case) -> Iterator[str]:
    yield f"op-{case.op}"
    if set(case.outputs) - set(case.made):
        yield "gradients"
    for name, value in case.settings.items():
        yield f"{name}-{str(value).lower()}" if isinstance(value, str | bool) else name
    if case.op in NORMS:
        yield "eps"
    if case.dialect.order != "either_order":
        yield f"order-{case.dialect.order}"
    if case.weight_offset:
        yield f"weight_offset-{case.weight_offset}"
    if case.dialect.weight_dtype == "float32" and case.dtype != "float32":
        yield "weight_dtype-float32"
    if is_split(case.layout):
        yield "split"
    elif case.layout != "contiguous":
        yield "not-written-into" if case.layout.endswith("aliased") else "strides"
    yield "exact" if case.exact else "interval"
    yield from {"rounding", "compute-dtype", "output-dtype"} if case.dialect.order != "either_order" else ()
    if isinstance(case, NormCase):
        yield from _of_norm(case)
    if isinstance(case, CompositeCase):
        yield from _of_composite(case)


def _of_norm(case: NormCase) -> Iterator[str]:
    if case.weight == "absent":
        yield "weight-absent"
    if case.x.rows in EDGES:
        yield f"edge-{case.x.rows}"
    if case.shape[-1] == 1:
        yield "edge-width-1"
    if 0 in case.shape:
        yield "edge-empty"
    if len(case.shape) == 1:
        yield "edge-rank-1"


def _of_composite(case: CompositeCase) -> Iterator[str]:
    if case.past and any("k" in name for name in case.input_shapes()):
        yield "caches"
    if case.key_mask != "absent":
        yield "key_mask"
    if case.key_mask == "hides_a_row":
        yield "query-without-key"


def broken_by(mistake: Mistake) -> tuple[str, ...]:
    """The clauses that a mistake breaks: those of what it alters, then those of the ops that it is made in."""
    parts = [OF_A_PART[part] for name in mistake.change if (part := name.partition(".")[0]) in OF_A_PART]
    return tuple(dict.fromkeys([*parts, *(f"op-{op}" for op in mistake.ops)]))
