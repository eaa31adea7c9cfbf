"""dweight and dbias where rows are split: sums over the rows of every rank."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from conformance.mistakes.mistake import ALL_NORMS, CENTRED, Mistake, Of
from conformance.numbers.rounding import HALF, round_to
from conformance.ops.norms.anatomy import Norm
from conformance.port.parts import bounds
from conformance.question.case import split

Array = np.ndarray


def of_parameter_gradients(count: int, who: str) -> Iterator[Mistake]:
    """Both gradients, or one of them: not summed over so many ranks, or not as they should be."""
    for outputs in (("dweight", "dbias"), ("dweight",), ("dbias",)):
        are, they = ("is", "it") if len(outputs) == 1 else ("are", "they")
        told = partial(
            Mistake,
            ops=CENTRED if "dbias" in outputs else ALL_NORMS,
            where=lambda norm: split(norm.case.layout) == "rows",
        )
        id_, name = "_and_".join(outputs), " and ".join(outputs)
        yield told(
            f"{id_}_of_own_rows",
            f"{name} {are} over one {who}'s own rows, not summed over the {count} {who}s",
            _summed(outputs, lambda terms: terms[bounds(len(terms), count)[0]]),
            f"Every {who} has its own.",
            "Megatron-LM#1446",
        )
        yield told(
            f"{id_}_averaged",
            f"{name} {are} averaged over the {count} {who}s, not summed: 1/{count} of what {they} should be",
            _summed(outputs, lambda terms: terms / count),
            f"All is too small by the number of {who}s.",
            "gpt-neox#1259",
        )
        yield told(
            f"{id_}_reduced_twice",
            f"{name} {are} reduced over the {who}s twice: times {count}",
            _summed(outputs, lambda terms: terms * count),
            f"All is too large by the number of {who}s.",
            "Megatron-LM#1528",
        )
        rounded = _summed(outputs, Of(partial(_rounded_sums, count)))
        yield told(
            f"{id_}_rounded_and_reduced",
            f"{name} {are} rounded to half precision on every {who}, and then summed",
            rounded,
            "Elements are off by a rounding of every part's sum.",
            "pytorch#190626; FSDP's reduce_dtype",
        )
        yield told(
            f"{id_}_reduced_in_half",
            f"{name} {are} reduced over the {who}s in half precision",
            rounded | {f"arithmetic.sums.{output}": Of(_half) for output in outputs},
            "Elements are off by a rounding of every part's sum, and of every addition.",
            "pytorch#190626; FSDP's reduce_dtype",
        )


def _summed(outputs: tuple[str, ...], change: Any) -> dict[str, Any]:
    """The same change of the terms, [*batch, d], of which each of these outputs is the sum."""
    return {f"{output.removeprefix('d')}_rows": change for output in outputs}


def _rounded_sums(count: int, norm: Norm) -> Callable[[Array], Array]:
    """Each part's sum, [ranks, d], rounded."""

    def sums(terms: Array) -> Array:
        each = [terms[part].reshape(-1, terms.shape[-1]).sum(axis=0) for part in bounds(len(terms), count)]
        return round_to(np.stack(each).astype(np.float64), _half(norm)).astype(terms.dtype)

    return sums


def _half(norm: Norm) -> str:
    """x's own dtype; of a wider one bfloat16."""
    return norm.case.dtype if norm.case.dtype in HALF else "bfloat16"
