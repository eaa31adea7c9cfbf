"""impl_torch and impl_jax before the kit's own judge, through the runner and its processes: `-s` shows the ratios."""

from pathlib import Path

import pytest

from conformance.ops.cases import CASES
from conformance.ops.table import OPS
from conformance.port.launch import Launch
from conformance.question.case import Case
from conformance.running.runner import run_ports

PORTS = ["impl_torch", "impl_jax"]
LAYOUTS = {case.id for case in CASES if case.layout != "contiguous"}


def is_compiled(case: Case) -> bool:
    """Whether it is a norm, or in float32 or bfloat16 a composite op: Llama's block in one, GPT-2's in the other, no stack."""
    if not OPS[case.op].costly:
        return True
    kind = {"float32": "llama", "bfloat16": "gpt2"}.get(case.dtype)
    return kind is not None and case.op != "pre_ln_stack" and (not OPS[case.op].taps or case.kind == kind)


# torch.compile takes seconds for every op, dtype, dialect and layout: it is asked what shows the most in each, and the
# layouts in one op, since neither op looks at strides; of blocks, two.
TELLING = ("random", "rows_near_eps", "aligned_dy")
COMPILED = tuple(
    case
    for case in CASES
    if (case.name in TELLING and case.dialect.weight_dtype == "storage" and is_compiled(case))
    or (case.op, case.name) == ("batch_norm", "random")  # whose parameters are float32 beside half precision
    or (case.id in LAYOUTS and (case.op, case.dtype) == ("rms_norm", "float32"))
)


def judge(port: str, cases: tuple[Case, ...], mode: str, seed: int) -> None:
    """Run a port; nothing may fail, nothing be skipped but layouts in JAX, and nothing use up its tolerance."""
    [run] = run_ports([Launch(port, mode=mode, timeout=300)], cases, seed=seed)
    assert not run.failure
    assert [verdict for verdict in run.verdicts if verdict.status in ("fail", "error")] == []
    skipped = {verdict.case.id for verdict in run.verdicts if verdict.status == "skip"}
    assert skipped == (LAYOUTS & {case.id for case in cases} if port == "impl_jax" else set())

    outputs = [(output.ratio, output.output, verdict.case.id) for verdict in run.verdicts for output in verdict.judged]
    largest = sorted(outputs, reverse=True)[:3]
    print(f"{port}, {mode}, seed {seed}:", *(f"{ratio:.3f} {id_} {output}" for ratio, output, id_ in largest), sep="\n  ")
    assert largest[0][0] <= 0.9


@pytest.fixture(autouse=True)
def _where_the_ports_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def test_there_are_twenty_one_cases_of_layouts():
    """All that impl_jax may skip."""
    assert len(LAYOUTS) == 21


@pytest.mark.parametrize(("port", "cases"), [("impl_torch", CASES), ("impl_jax", CASES[::2])])
def test_every_case_passes_in_eager_mode(port, cases):
    """In JAX, which compiles every operation for every shape, every second one."""
    judge(port, cases, "eager", seed=0)


@pytest.mark.parametrize("port", PORTS)
def test_every_kind_of_case_passes_compiled(port):
    kinds = {(case.op, case.dialect.order, case.dtype) for case in CASES if not OPS[case.op].costly}
    assert {(case.op, case.dialect.order, case.dtype) for case in COMPILED} >= kinds
    assert {case.op for case in COMPILED} == set(OPS) - {"pre_ln_stack"}
    judge(port, COMPILED, "jit", seed=1)
