"""What others ask: their own inputs, as near as a case can have them.

Their widths are kept where they are small enough to be asked often. Values are bell-shaped for `randn`, and a weight that they
draw is drawn as the kit draws it, which shows more than one that lies near one.
"""

from math import sqrt

from conformance.numbers.rounding import DType
from conformance.ops.draw import Cotangent, Draw, Weight
from conformance.ops.norms.cases import EPS_1E_5, ROW_NORMS, NormCase, Probe, RowNormOp, row_norm_case
from conformance.question import dialects

EPS_1E_6 = 9.999999974752427e-07  # the float32 nearest to it, as in all cases
EPS_1E_1 = 0.10000000149011612


def _cases(
    judge: str,
    ops: tuple[RowNormOp, ...],
    dtypes: tuple[DType, ...],
    shapes: tuple[tuple[int, ...], ...],
    *,
    eps: tuple[float, ...] = (EPS_1E_5,),
    x: Draw | None = None,
    weight: Weight = "signed",
    dy: Cotangent = "random",
    order: str = "",
) -> tuple[NormCase, ...]:
    """A case for every op, dtype, dialect, shape and eps; `order` is the one dialect that is asked in half precision."""
    return tuple(
        row_norm_case(
            op,
            dtype,
            dialect,
            Probe(
                f"{judge}_{'x'.join(map(str, shape))}_{one:.0e}",
                "what its own test asks",
                shape,
                one,
                x or Draw(),
                weight,
                weight != "absent",
                dy,
            ),
        )
        for op in ops
        for dtype in dtypes
        for dialect in (dialects.SINGLE if dtype == "float32" else dialects.HALF)
        if not order or dialect.order in (order, "either_order")
        for shape in shapes
        for one in eps
    )


RMS, LAYER = ROW_NORMS[:1], ROW_NORMS[1:]
ALL: tuple[DType, ...] = ("float32", "bfloat16", "float16")

KERNELBENCH = _cases("kernelbench", RMS, ("float32",), ((64, 64),), x=Draw(scale=1 / sqrt(12), offset=0.5), weight="absent")
VLLM = tuple(
    case
    for width in (8, 768, 5125)  # of 8, 768, 769, 5120, 5125, 8192
    for case in _cases("vllm", RMS, ALL, ((7, width),), eps=(EPS_1E_6,), x=Draw(scale=1 / (2 * width)), order="cast_then_scale")
)
FLASHINFER = (
    *_cases("flashinfer", RMS, ("float16",), ((19, 111), (1, 500)), eps=(EPS_1E_6,), order="scale_then_cast"),
    *_cases("flashinfer", LAYER, ("bfloat16",), ((3, 128), (3, 129)), eps=(EPS_1E_6,), order="scale_then_cast"),
)
LIGER = (
    *_cases(
        "liger",
        RMS,
        ("float32", "bfloat16"),
        ((2, 8, 512), (5, 3, 123)),
        eps=(EPS_1E_6,),
        weight="ones",
        order="cast_then_scale",
    ),
    *_cases("liger", LAYER, ("float32",), ((2, 8, 64), (3, 7, 256)), eps=(EPS_1E_6,), weight="ones"),
)
QUACK = _cases("quack", RMS, ALL, ((37, 192),), eps=(EPS_1E_5, EPS_1E_6), order="scale_then_cast")
FLASH_ATTENTION = _cases("flash_attention", ROW_NORMS, ALL, ((8, 4, 192),), eps=(EPS_1E_6,), order="scale_then_cast")
TRANSFORMER_ENGINE = _cases(
    "transformer_engine", ROW_NORMS, ALL, ((71, 229),), x=Draw(scale=sqrt(0.75), offset=-0.5), order="scale_then_cast"
)
ONNX = _cases("onnx", ROW_NORMS, ("float32",), ((2, 3, 4, 5), (2, 3, 5)), eps=(EPS_1E_5, EPS_1E_1))
SUMMED = _cases("summed", ROW_NORMS, ("float32",), ((4, 8, 64),), dy="ones")
"""y.sum().backward(), as many a test has it: dx is then nearly nothing, and no weight is told from its mean."""
