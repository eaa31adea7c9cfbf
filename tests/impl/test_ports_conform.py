"""impl_torch and impl_jax before the kit's own judge, through the runner and its processes: `-s` shows the ratios."""

from pathlib import Path

import pytest

from conformance.numbers.rounding import DTYPES
from conformance.ops.cases import CASES
from conformance.ops.quick import QUICK
from conformance.ops.table import OPS
from conformance.port.launch import Launch
from conformance.question.case import Case, is_split, layouts
from conformance.running.runner import run_ports

PORTS = ["impl_torch", "impl_jax"]
LAYOUTS = {case.id for case in CASES if layouts(case.layout)}
SPLIT = {case.id for case in CASES if is_split(case.layout)}


def is_compiled(case: Case) -> bool:
    """Whether it is a norm, or in float32 or bfloat16 a composite op: Llama's block in one, GPT-2's in the other, no stack."""
    if not OPS[case.op].costly:
        return True
    kind = {"float32": "llama", "bfloat16": "gpt2"}.get(case.dtype)
    return kind is not None and case.op != "pre_ln_stack" and (not OPS[case.op].taps or case.kind == kind)


# What shows the most in every op, dtype and dialect; the layouts in one op, since neither op looks at strides; of blocks, two.
TELLING = ("random", "rows_near_eps", "aligned_dy", "static_float8_e4m3fn_random")
COMPILED = tuple(
    case
    for case in CASES
    if (case.name in TELLING and case.dialect.weight_dtype == "storage" and is_compiled(case))
    or (case.op, case.name) == ("batch_norm", "random")  # whose parameters are float32 beside half precision
    or (case.id in LAYOUTS and (case.op, case.dtype) == ("rms_norm", "float32"))
    or (case.id in SPLIT and case.dtype == "bfloat16" and case.dialect.order != "scale_then_cast")
)

# torch.compile takes seconds for every op, dtype, dialect and layout, and the ops' code is the same in every dtype but for
# the casts: each op is asked in two dtypes at most, and every dtype of some op. `make conformance` compiles all.
DTYPES_OF = {
    "rms_norm": ("float32", "bfloat16"),
    "layer_norm": ("float64", "float16"),
    "add_rms_norm": ("bfloat16",),
    "add_layer_norm": ("float32",),
    "gated_rms_norm": ("bfloat16",),
    "quantised_rms_norm": ("bfloat16",),
    "quantised_add_rms_norm": ("float16",),
    "batch_norm": ("bfloat16",),
    "rope": ("float32",),
    "attention": ("bfloat16",),
    "swiglu": ("bfloat16",),
    "gelu": ("float32",),
    "pre_ln_block": ("float32", "bfloat16"),
}
COMPILED_BY_TORCH = tuple(
    case for case in COMPILED if case.dtype in DTYPES_OF[case.op] and case.layout in ("contiguous", "permuted", "expanded")
)


def judge(port: str, cases: tuple[Case, ...], mode: str, seed: int) -> None:
    """Run a port; nothing may fail, or be skipped but strides in JAX and split arrays in torch, or use up its tolerance."""
    [run] = run_ports([Launch(port, mode=mode, timeout=300)], cases, seed=seed)
    assert not run.failure
    assert [verdict for verdict in run.verdicts if verdict.status in ("fail", "error")] == []
    skipped = {verdict.case.id for verdict in run.verdicts if verdict.status == "skip"}
    assert skipped == (LAYOUTS if port == "impl_jax" else SPLIT) & {case.id for case in cases}

    outputs = [(output.ratio, output.output, verdict.case.id) for verdict in run.verdicts for output in verdict.judged]
    largest = sorted(outputs, reverse=True)[:3]
    print(f"{port}, {mode}, seed {seed}:", *(f"{ratio:.3f} {id_} {output}" for ratio, output, id_ in largest), sep="\n  ")
    assert largest[0][0] <= 0.9


@pytest.fixture(autouse=True)
def _where_the_ports_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def test_there_are_twenty_five_cases_of_layouts():
    """All that impl_jax may skip."""
    assert len(LAYOUTS) == 25


# JAX in eager mode compiles every operation for every shape. The quick cases reject whatever is wrong in any case; one in
# three is enough to see that op by op it is the compiled one's code, as it is of a block, which takes seconds.
IN_EAGER_JAX = tuple(case for case in CASES if case in (COMPILED if OPS[case.op].taps else QUICK[::3]))


@pytest.mark.parametrize(("port", "cases"), [("impl_torch", CASES), ("impl_jax", IN_EAGER_JAX)], ids=PORTS)
def test_every_case_passes_in_eager_mode(port, cases):
    judge(port, cases, "eager", seed=0)


@pytest.mark.parametrize(("port", "cases"), [("impl_torch", COMPILED_BY_TORCH), ("impl_jax", COMPILED)], ids=PORTS)
def test_every_kind_of_case_passes_compiled(port, cases):
    assert {case.op for case in cases} == set(OPS) - {"pre_ln_stack"}
    assert {case.dtype for case in cases} == set(DTYPES)
    assert {case.dialect.order for case in cases} == {case.dialect.order for case in CASES}
    judge(port, cases, "jit", seed=1)


def test_jax_compiles_every_kind():
    kinds = {(case.op, case.dialect.order, case.dtype) for case in CASES if not OPS[case.op].costly}
    assert {(case.op, case.dialect.order, case.dtype) for case in COMPILED} >= kinds
