"""The residual of a norm that adds one: what is summed, what the norm reads, what is returned, and where gradients go.

In a change `added.…` is a part of what the norm has for its residual: the functions of x, the residual r and their sum s that
say what the norm reads and what is returned, and the function of ds and dresidual_out that says what x and r are passed.
"""

import numpy as np

from conformance.mistakes.mistake import ADDED, Change, Mistake, Of
from conformance.numbers.rounding import SINGLE, round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.steps import Steps

Array = np.ndarray

NO_NARROWER: dict[str, str] = dict.fromkeys(SINGLE, "there is no narrower dtype")
BLOCKS = "planted: a sum that is written once in the model and once in the kernel"


def _added_after(norm: Norm) -> object:
    """The gradients of y = norm(x) + r: the residual is passed dy itself."""
    return lambda ds, d: (ds + d, norm.dy + d)


def _squares_of_unrounded(norm: Norm) -> object:
    """The squares of the sum as it was before it was rounded."""
    added = norm.added
    assert added

    def squares(s: Steps) -> tuple[Array, Array]:
        unrounded = added.total(norm.x, added.residual).astype(s.x.dtype)
        centred = unrounded - np.mean(unrounded, axis=-1, keepdims=True) if norm.centre_statistics else unrounded
        return np.square(centred), 2 * centred

    return squares


def _narrowed(dtype: str) -> object:
    return lambda x, r, s: round_to(s.astype(np.float64), dtype).astype(s.dtype)


def _passed_narrowed(dtype: str) -> object:
    return lambda ds, d: (ds + d, round_to((ds + d).astype(np.float64), dtype).astype(ds.dtype))


def _of_sum(id_: str, sentence: str, change: Change, effect: str, evidence: str = BLOCKS, *, half: bool = False) -> Mistake:
    """A mistake of the forward pass; `half`: only where the storage dtype is narrower than the compute dtype."""
    return Mistake(id_, sentence, change, effect, evidence, ADDED, hidden=NO_NARROWER if half else {})


def _of_gradient(id_: str, sentence: str, passed: object, effect: str, evidence: str = BLOCKS) -> Mistake:
    return Mistake(id_, sentence, {"added.passed": passed}, effect, evidence, ADDED)


MISTAKES = (
    _of_sum(
        "residual_left_out",
        "the norm reads x, not the sum",
        {"added.read": lambda x, r, s: x},
        "y is another function; the sum that is returned is right.",
    ),
    _of_sum(
        "norm_of_the_residual",
        "the norm reads the residual, not the sum",
        {"added.read": lambda x, r, s: r},
        "y is another function; the sum that is returned is right.",
        "planted: two pointers in the other order",
    ),
    _of_sum(
        "residual_added_after_norm",
        "the residual is added to y, not to what the norm reads",
        {
            "added.read": lambda x, r, s: x,
            "added.after": lambda r: r,
            "added.passed": Of(_added_after),
        },
        "y is of the size of the residual, and no longer of one.",
        "planted: Post-LN taken for Pre-LN",
    ),
    _of_sum(
        "residual_twice",
        "the residual is added twice",
        {"added.total": lambda x, r: x + 2 * r, "added.passed": lambda ds, d: (ds + d, 2 * (ds + d))},
        "y and the sum are off wherever there is a residual.",
        "planted: by the caller and by the kernel",
    ),
    _of_sum(
        "residual_subtracted",
        "the residual is subtracted",
        {"added.total": lambda x, r: x - r, "added.passed": lambda ds, d: (ds + d, -ds - d)},
        "y and the sum are off wherever there is a residual.",
        "planted: a sign",
    ),
    _of_sum(
        "x_returned_for_sum",
        "x is returned for the sum",
        {"added.returned": lambda x, r, s: x},
        "y is right; the next layer's residual has lost all layers before.",
    ),
    _of_sum(
        "residual_returned_for_sum",
        "the residual is returned as it came, without x",
        {"added.returned": lambda x, r, s: r},
        "y is right; the next layer's residual lacks this one.",
        "planted: a residual that is not written back",
    ),
    Mistake(
        "sum_not_rounded",
        "the norm reads the sum as it was before it was rounded to x's dtype",
        {"added.stored": False},
        "A few elements of y are off by one ulp; more, the larger the residual is against x.",
        "vLLM holds both: csrc/layernorm_kernels.cu, and csrc/quantization/fused_kernels/layernorm_utils.cuh; vllm#52104",
        ADDED,
        hidden=NO_NARROWER,
        dialect=True,
    ),
    Mistake(
        "sum_rounded",
        "the norm reads the sum rounded to x's dtype",
        {"added.read": Of(lambda norm: _narrowed(norm.case.dtype))},
        "A few elements of y are off by one ulp; more, the larger the residual is against x.",
        "a kernel that writes the sum first, and reads it again",
        ADDED,
        hidden=NO_NARROWER,
        dialect=True,
    ),
    _of_sum(
        "statistics_of_the_unrounded_sum",
        "the statistics are of the sum before it was rounded, and what is scaled is the rounded sum",
        {"squares": Of(_squares_of_unrounded)},
        "Every row is off by a factor of its own, by a part of half an ulp.",
        "planted: the sum of squares taken in the loop that adds",
        half=True,
    ),
    _of_sum(
        "sum_returned_in_storage_dtype",
        "the sum is rounded to x's dtype on its way into a float32 residual",
        {"added.returned": Of(lambda norm: _narrowed(norm.case.dtype))},
        "y is right; a float32 residual has half precision's digits.",
        "planted: residual_in_fp32 that is cast too late",
        half=True,
    ),
    _of_gradient(
        "dresidual_out_left_out",
        "the gradient of the sum that is returned is left out",
        lambda ds, d: (ds, ds),
        "y is right; dx and dresidual lack the gradient of all later layers.",
        "planted: an optional argument, as Liger has it",
    ),
    _of_gradient(
        "dresidual_out_twice",
        "the gradient of the sum that is returned is added twice",
        lambda ds, d: (ds + 2 * d, ds + 2 * d),
        "y is right; dx and dresidual are not.",
        "planted: by the kernel and by autograd",
    ),
    _of_gradient(
        "norm_gradient_left_out",
        "the gradient through the norm is left out",
        lambda ds, d: (d, d),
        "y is right; dx and dresidual are the gradient of the sum that is returned, and no more.",
        "planted: a kernel that gives one of the two summands its own gradient",
    ),
    _of_gradient(
        "residual_without_gradient",
        "nothing is passed back to the residual",
        lambda ds, d: (ds + d, 0 * d),
        "y and dx are right; dresidual is zero.",
        "planted: a residual that is detached",
    ),
    Mistake(
        "dresidual_in_storage_dtype",
        "the gradient of a float32 residual is rounded to x's dtype",
        {"added.passed": Of(lambda norm: _passed_narrowed(norm.case.dtype))},
        "dresidual has half precision's digits in float32.",
        "planted: one gradient for both summands",
        ADDED,
        hidden=NO_NARROWER,
    ),
)
