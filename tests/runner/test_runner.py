"""A journey through `run_ports`: whatever a port does costs its own cases, and nothing else."""

import math
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from conformance.judging.compare import Verdict
from conformance.numbers.rounding import HALF
from conformance.ops.cases import select
from conformance.ops.norms.cases import ROW_NORM_CASES, ROW_NORMS
from conformance.port import session
from conformance.port.launch import Launch
from conformance.port.process import Family, PortFailure, RunningPort
from conformance.port.protocol import Hello
from conformance.port.session import STARTS_IN_A_ROW
from conformance.question.case import Case
from conformance.report.building import build
from conformance.report.console import show
from conformance.report.html import as_html
from conformance.report.junit import as_junit
from conformance.report.markdown import as_markdown
from conformance.report.report import CONFORMS, FAILS, Settings
from conformance.running.runner import PortRun, run_port, run_ports, unsupported
from conformance.running.shard import program

VICTIM, FOLLOWER = select("rms_norm/either_order/float32/zero_rows") + select("rms_norm/either_order/float32/random")
HELLO = Hello(
    "port",
    ops=("rms_norm",),
    dtypes=("float32", "bfloat16"),
    orders=("scale_then_cast",),
    weight_offsets=(0,),
    gradients=True,
)


def bad_port(name: str, **how) -> Launch:
    return Launch(f"tests.runner.bad_ports:{name}", **how)


def impure(name: str, **how) -> Launch:
    return Launch(f"tests.runner.impure_ports:{name}", **how)


def hostile(*way: str, spec: str = "hostile") -> Launch:
    return Launch(spec, (sys.executable, str(Path(__file__).with_name("hostile_ports.py")), *way), timeout=30.0)


def run(launch: Launch, *cases: Case, **options) -> PortRun:
    (result,) = run_ports([launch], cases, **options)
    return result


def statuses(port_run: PortRun) -> list[str]:
    return [verdict.status for verdict in port_run.verdicts]


def test_an_honest_port_passes_every_case():
    result = run(bad_port("Honest"), *ROW_NORM_CASES)
    assert [verdict for verdict in result.verdicts if verdict.status != "pass"] == []
    assert [verdict.case for verdict in result.verdicts] == list(ROW_NORM_CASES)


def test_processes_share_the_cases_and_not_a_family():
    """What a compiler keeps for a program would be compiled in both."""
    result = run(bad_port("SaysItsProcess"), *ROW_NORM_CASES, jobs=2)
    assert [verdict.case for verdict in result.verdicts] == list(ROW_NORM_CASES)
    processes: dict[object, set[str]] = {}
    for verdict in result.verdicts:
        processes.setdefault(program(verdict.case), set()).add(verdict.message)
    assert {len(of_family) for of_family in processes.values()} == {1}
    assert len(set().union(*processes.values())) == 2


def test_what_a_port_prints_is_not_its_answer():
    assert statuses(run(bad_port("Talks"), VICTIM, FOLLOWER)) == ["pass", "pass"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Dies", "the port exited with status 7: the last words"),
        ("Leaves", "the port exited with status 0"),
        ("IsKilled", "the port was killed by SIGKILL"),
        ("Raises", "RuntimeError: not today"),
        ("WrongShape", "y has shape [2, 3, 32]; expected [2, 3, 33]"),
        ("Integers", "tensor 'y' is I64; known are F64, F32, BF16, F16"),
        ("MissesOutput", "output 'dweight' is missing: the port returned dx, y"),
        ("ReturnsNothing", "output 'y'"),
    ],
)
def test_a_bad_port_costs_its_own_case(name, message):
    error, after = run(bad_port(name), VICTIM, FOLLOWER).verdicts
    assert (error.status, after.status) == ("error", "pass")
    assert message in error.message


def test_a_wrong_dtype_fails_its_case():
    fails, after = run(bad_port("WrongDtype"), VICTIM, FOLLOWER).verdicts
    assert (fails.status, fails.message, after.status) == ("fail", "dx is float16; expected float32", "pass")


@pytest.mark.parametrize(("name", "tensor"), [("OverwritesX", "x"), ("OverwritesDy", "dy")])
def test_a_port_that_overwrites_its_input_fails_and_is_told_so_once(name, tensor):
    result = run(impure(name), *select("rms_norm/*/random"))
    assert {(verdict.status, verdict.message) for verdict in result.verdicts} == {("fail", f"overwrites its input {tensor}")}
    assert all(output.outside == 0 for verdict in result.verdicts for output in verdict.outputs)
    [cause] = build([result], Settings(0, "cpu", "jit")).causes
    assert (cause.what, len(cause.cases)) == (f"overwrites its input {tensor}", len(result.verdicts))


def test_a_port_that_declares_what_it_overwrites_is_judged_by_its_values():
    cases = select("rms_norm/*/float32/*", exclude=("*/groups_of_*", "*/sharded_*"))
    result = run(impure("DeclaresDy"), *cases)
    assert set(statuses(result)) == {"pass"}
    console = Console(file=StringIO(), width=200)
    report = build([result], Settings(0, "cpu", "jit"))
    show(report, console)
    assert "DeclaresDy overwrites dy, by declaration" in console.file.getvalue()
    assert "DeclaresDy overwrites dy, by declaration" in as_markdown(report)
    other = run(impure("DeclaresXAndOverwritesDy"), VICTIM)
    assert [(verdict.status, verdict.message) for verdict in other.verdicts] == [("fail", "overwrites its input dy")]


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("CompilesToAnother", "jit", "jit"),
        ("CompilesToAnother", "eager", "eager"),
        ("DeclaresDy", "jit", "eager (it declares no compiler)"),
        ("DeclaresDy", "eager", "eager"),
    ],
)
def test_jit_is_claimed_only_of_a_port_that_compiles(name, asked, said):
    result = run(impure(name, mode=asked), FOLLOWER)
    report = build([result], Settings(0, "cpu", asked))
    assert f'<property name="mode" value="{said}" />' in as_junit(report)
    assert f"<td>{said}</td>" in as_html(report)
    assert f"asked for {asked} on cpu" in as_html(report)


def test_overwriting_is_told_beside_a_known_mistake():
    case = select("rms_norm/either_order/float32/rows_near_eps")
    result = run(impure("OverwritesXAndMistakesEps"), *case)
    causes = [cause.what for cause in build([result], Settings(0, "cpu", "jit")).causes]
    assert causes == ["eps is added to the root, not under it", "overwrites its inputs x, weight"]


def test_a_nan_fails_its_case():
    fail, after = run(bad_port("NotANumber"), VICTIM, FOLLOWER).verdicts
    assert (fail.status, after.status) == ("fail", "pass")
    y = fail.outputs[0]
    assert (y.output, y.ratio, y.outside, y.size) == ("y", math.inf, 1, math.prod(VICTIM.shape))
    assert y.worst.index == (1, 2, 3)
    assert math.isnan(y.worst.actual)


def test_a_hung_port_is_given_its_time_and_started_again(wait_for_processes, slow_start):
    began = time.monotonic()
    result = run_port(bad_port("Hangs", timeout=1.5), (VICTIM, FOLLOWER))
    assert 1.5 <= time.monotonic() - began < 20
    assert statuses(result) == ["error", "pass"]
    assert result.verdicts[0].message == "the port did not answer within 1.5 s"
    assert wait_for_processes(0)


def test_a_port_that_always_fails_is_given_up(monkeypatch):
    starts, start = [], session.start

    def counted(launch: Launch, family: Family | None) -> RunningPort:
        starts.append(launch)
        return start(launch, family)

    monkeypatch.setattr(session, "start", counted)
    result = run_port(bad_port("AlwaysDies"), (VICTIM, FOLLOWER) * 3)
    assert len(starts) == STARTS_IN_A_ROW == 3
    assert [verdict.message for verdict in result.verdicts] == ["the port exited with status 9"] * 3 + [
        "not asked: the port failed 3 times in a row"
    ] * 3


def test_a_port_that_cannot_be_started_again_is_given_up(monkeypatch):
    processes = iter([session.start(hostile("prints"), None)])

    def only_once(launch: Launch, family: Family | None) -> RunningPort:
        for process in processes:
            return process
        raise PortFailure("could not be started: no more memory")

    monkeypatch.setattr(session, "start", only_once)
    result = run_port(hostile("prints"), (VICTIM, FOLLOWER, FOLLOWER, FOLLOWER))
    assert statuses(result) == ["error"] * 4
    assert ["no more memory" in verdict.message for verdict in result.verdicts] == [False, True, True, False]
    assert "not asked" in result.verdicts[3].message


def test_a_port_that_fails_now_and_then_is_not_given_up():
    assert statuses(run(hostile("prints"), *(VICTIM, VICTIM, FOLLOWER) * 2)) == ["error", "error", "pass"] * 2


def test_a_port_of_protocol_1_is_served():
    assert statuses(run(hostile("says_protocol_1"), FOLLOWER)) == ["pass"]


def test_a_port_that_cannot_be_run_has_no_verdicts():
    result = run(bad_port("DiesAtBirth"), VICTIM)
    assert (result.hello, result.verdicts, result.failure) == (None, (), "exited with status 5: stillborn")


def test_ports_run_side_by_side(tmp_path):
    """Each of two waits for the other, which one after the other could not."""
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    launches = [hostile("meets", here, there, spec="one"), hostile("meets", there, here, spec="other")]
    one, other = run_ports(launches, [VICTIM])
    assert (one.spec, one.verdicts[0].message) == ("one", "we met")
    assert (other.spec, other.verdicts[0].message) == ("other", "we met")


def test_ports_do_not_mix():
    cases = select("*_norm/*/rows_near_eps", op=ROW_NORMS)
    seen: list[Verdict] = []
    launches = [bad_port(name) for name in ("Honest", "DiesAtBirth", "EpsOutsideRoot", "Dies")]
    honest, stillborn, wrong, dying = run_ports(launches, cases, on_verdict=seen.append)
    assert set(statuses(honest)) == set(statuses(dying)) == {"pass"}
    assert statuses(stillborn) == []
    assert "fail" in statuses(wrong)
    assert sorted(seen, key=repr) == sorted(honest.verdicts + wrong.verdicts + dying.verdicts, key=repr)


@pytest.mark.parametrize(
    ("id_", "reason"),
    [
        ("rms_norm/either_order/float32/random", ""),
        ("rms_norm/scale_then_cast/bfloat16/random", ""),
        ("layer_norm/either_order/float32/random", "no op layer_norm"),
        ("rms_norm/scale_then_cast/float16/random", "no dtype float16"),
        ("rms_norm/cast_then_scale/bfloat16/random", "no order cast_then_scale"),
        ("rms_norm/either_order_offset_1/float32/random", "no weight offset 1"),
    ],
)
def test_what_a_port_does_not_claim_is_not_asked(id_, reason):
    (case,) = select(id_)
    assert unsupported(case, HELLO) == reason


@pytest.mark.parametrize(
    ("name", "hello"),
    [
        ("Honest", {"ops": ("rms_norm", "layer_norm"), "orders": ("cast_then_scale", "scale_then_cast"), "gradients": True}),
        ("NoLayerNorm", {"ops": ("rms_norm",)}),
        ("NoGradients", {"gradients": False}),
        ("OneOrder", {"orders": ("scale_then_cast",)}),
        ("NoOffset", {"weight_offsets": (0,)}),
    ],
)
def test_a_port_says_what_it_has(name, hello):
    result = run(bad_port(name), FOLLOWER)
    assert {field: getattr(result.hello, field) for field in hello} == hello
    assert statuses(result) == ["pass"]


def test_without_gradients_y_alone_is_judged():
    for name, judged in {"NoGradients": ["y"], "Honest": ["y", "dx", "dweight"]}.items():
        (verdict,) = run(bad_port(name), FOLLOWER).verdicts
        assert [output.output for output in verdict.outputs] == judged


def test_a_port_may_skip_a_case():
    skip, after = run(bad_port("SkipsOne"), VICTIM, FOLLOWER).verdicts
    assert (skip.status, skip.message, after.status) == ("skip", "no zeros on Sundays", "pass")


def test_a_case_expected_to_fail_must_fail():
    cases = select("rms_norm/either_order/float32/rows_near_eps") + select("rms_norm/either_order/float32/values_near_6e4")
    fails, passes = run(bad_port("KnowsItsFaults"), *cases).verdicts
    assert (fails.status, fails.message) == ("expected", "eps outside the root")
    assert fails.ratio > 1
    assert (passes.status, passes.message) == ("fail", "passes, though it is expected to fail: nothing is wrong here")
    report = build([run(bad_port("KnowsItsFaults"), *cases)], Settings(0, "cpu", "jit"))
    assert report.exit_status == FAILS
    (cause,) = report.causes
    assert cause.what == passes.message
    assert report.reasons("expected") == {bad_port("KnowsItsFaults").spec: {"eps outside the root": 1}}


def test_a_case_that_may_fail_is_as_expected_either_way():
    cases = select("rms_norm/either_order/float32/rows_near_eps") + select("rms_norm/either_order/float32/values_near_6e4")
    result = run(bad_port("FailsByChance"), *cases)
    fails, passes = result.verdicts
    assert (fails.status, fails.message) == ("expected", "may fail, and did: its seed decides")
    assert (passes.status, passes.message) == ("expected", "may fail, and passed: its seed decides")
    assert fails.ratio > 1 > passes.ratio
    result = run(bad_port("FailsByChance"), *cases, *select("layer_norm/either_order/float32/values_near_6e4"))
    report = build([result], Settings(0, "cpu", "jit"))
    assert (report.exit_status, report.counts(), report.causes) == (CONFORMS, {"expected": 2, "pass": 1}, ())


def test_an_order_is_said_by_op_and_dtype():
    ids = [
        f"{op}/{order}/{dtype}/random" for op in ROW_NORMS for dtype in HALF for order in ("cast_then_scale", "scale_then_cast")
    ]
    verdicts = run(bad_port("OrderByDtype"), *(case for id_ in ids for case in select(id_))).verdicts
    assert [verdict.case.id for verdict in verdicts if verdict.status == "pass"] == [
        "rms_norm/scale_then_cast/bfloat16/random",
        "rms_norm/cast_then_scale/float16/random",
    ]
    assert [verdict.message for verdict in verdicts if verdict.case.op == "layer_norm"] == [
        f"no order {verdict.case.dialect.order}" for verdict in verdicts if verdict.case.op == "layer_norm"
    ]
    assert all(verdict.status in ("pass", "skip") for verdict in verdicts)


def test_an_earlier_answer_is_not_taken_for_a_later_one():
    first, second = run(hostile("answers_once"), VICTIM, VICTIM).verdicts
    assert first.message == "output 'y' is missing: the port returned dy, weight, x"
    assert second.message.endswith("outputs.safetensors: no such file")
