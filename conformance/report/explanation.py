"""A case in words and figures."""

import numpy as np

from conformance.cases import Case
from conformance.golden import golden


def explanation(case: Case) -> str:
    """What a case exposes, how it is drawn, and how far each of its outputs may be off, in units of its largest value."""
    expected = golden(case)
    x = case.x
    draw = f"{x.offset:g} + {x.scale:.3g} · N(0, 1)" if x.offset else f"{x.scale:.3g} · N(0, 1)"
    inputs = ", ".join(f"{name} {array.dtype.name}{list(array.shape)}" for name, array in expected.inputs.items())
    lines = [
        case.id,
        f"  exposes   {case.exposes}",
        f"  dialect   {case.dialect.sentence}",
        f"  inputs    {inputs}",
        f"  x         {draw}, {x.rows.replace('_', ' ')}, {case.layout}",
        f"  eps       {case.eps:.9g}",
        f"  weight    {case.weight.replace('_', ' ')}",
        f"  fixture   {f'{case.id}.safetensors' if case.has_fixture else 'none: a large case, computed live'}",
        "  outputs",
    ]
    for name, output in expected.outputs.items():
        lower, upper = output.interval()
        finite = np.isfinite(output.value)
        width = np.max((upper - lower)[finite], initial=0.0)
        single = np.mean((lower == upper)[finite]) if finite.any() else 1.0
        lines.append(
            f"    {name:8} {output.dtype}{list(output.value.shape)}: "
            f"widest interval {width:.2g}, a single value admitted in {single:.0%} of elements"
        )
    lines.append(f"  run       conformance run --case '{case.id}'")
    return "\n".join(lines)
