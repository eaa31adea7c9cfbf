"""`conformance speed`: no cheat has a speed that ranks, and no honest port is accused. What a call takes is not asserted."""

import json

import pytest

from conformance.ops.golden import compute
from conformance.ops.shapes import shaped
from conformance.port.launch import Launch
from conformance.port.protocol import Repeated
from conformance.tools.speed.figures import timing_of
from conformance.tools.speed.floor import floor
from conformance.tools.speed.speed import time_ports
from tests.runner.test_cli import conformance

CHEATS = "tests.runner.cheating_ports"


def case_of(shape, op="rms_norm", dtype="float32"):
    return next(case for case in shaped(shape) if (case.op, case.dtype) == (op, dtype))


def rows_of(*names, shape="16x64"):
    launches = [Launch(f"{CHEATS}:{name}", in_process=True) for name in names]
    return time_ports(launches, [case_of(shape)], seed=1)


@pytest.mark.parametrize(
    ("cheat", "shape", "words"),
    [
        ("RemembersWhereXLies", "16x64", "wrong when it is timed, "),
        ("RemembersASum", "16x64", "wrong when it is timed, "),
        ("ReturnsEarly", "16x64", "wrong when it is timed, "),
        ("FindsWhatItLeft", "1x64", "wrong when it is timed, "),
        ("OverwritesX", "16x64", "wrong when it is timed, 5 times: overwrites x"),
    ],
)
def test_a_cheat_does_not_rank_and_the_report_says_why(cheat, shape, words):
    [row] = rows_of(cheat, shape=shape)
    assert row.part == "forward"
    assert not row.counts
    assert words in row.faults[-1]


def test_a_result_that_is_computed_when_it_is_read_is_an_error():
    [row] = rows_of("Lazy")
    assert row.faults == ()
    assert not row.counts
    assert "its result is computed when it is read" in row.timing.errors[0]


def test_backward_passes_have_faults_of_their_own():
    forward, backward = rows_of("BackwardOverwritesDy")
    assert forward.counts
    assert backward.faults == ("wrong when it is timed, 6 times: overwrites dy",)
    forward, backward = rows_of("WrongBackward")
    assert forward.counts
    assert "elements of dx" in backward.faults[0]


@pytest.mark.parametrize(
    ("honest", "parts"),
    [("Honest", ["forward", "both"]), ("InParts", ["forward", "backward"]), ("LazyAndSaysHowToWait", ["forward"])],
)
def test_an_honest_port_is_not_accused(honest, parts):
    rows = rows_of(honest)
    assert [row.part for row in rows] == parts
    assert [(row.faults, row.reason, row.timing.errors) for row in rows] == [((), "", ())] * len(parts)


def test_only_what_conforms_is_compared():
    ours, theirs = rows_of("Honest", "NoGradients")
    assert ours.ratio.lower <= ours.ratio.median <= ours.ratio.upper
    assert theirs.ratio is None
    ours, cheat = rows_of("Honest", "RemembersASum")
    assert ours.counts
    assert ours.ratio is cheat.ratio is None


def test_a_rate_above_that_of_a_copy_is_an_error_and_no_record():
    def timing(seconds):
        calls = {"cpu_seconds": [1.0] * 4, "copy_seconds": [2.0, 3.0, 4.0, 5.0], "read_seconds": [0.0] * 4}
        return timing_of([Repeated([seconds] * 4, **calls, plain_read_seconds=[0.0] * 4)], n_bytes=8_000_000_000)

    assert timing(2.5).errors == ()
    [error] = timing(1.0).errors
    assert error.startswith("8 GB/s at least is more than the fastest copy of the same turns, 4 GB/s")


@pytest.mark.parametrize(
    ("op", "dtype", "numbers"),
    [  # of x's elements and of its features: those of the forward pass, of the backward pass, of both
        ("rms_norm", "float32", [(2, 1), (3, 1), (4, 2)]),
        ("layer_norm", "bfloat16", [(2, 2), (3, 2), (4, 4)]),
        ("add_rms_norm", "float32", [(4, 1), (4, 1), (7, 2)]),
    ],
)
def test_the_floor_is_what_is_read_and_written_once(op, dtype, numbers):
    golden = compute(case_of("16x64", op, dtype), 0)
    size = golden.inputs["x"].itemsize
    for part, (elements, features) in zip(("forward", "backward", "both"), numbers, strict=True):
        assert floor(golden, part) == size * (elements * 16 * 64 + features * 64)


def test_the_command_strikes_out_what_does_not_conform(tmp_path):
    path = tmp_path / "speed.json"
    options = ("--op", "rms_norm", "--dtype", "float32", "--shape", "16x64", "--json", str(path))
    status, output = conformance("speed", f"{CHEATS}:WrongBackward", "--against", f"{CHEATS}:InParts", *options)
    assert status == 1
    assert f"{CHEATS}:WrongBackward rms_norm float32 backward does not conform: 10 of 10 quick cases fail" in output
    assert output.count("~~") == 2 * len(("ms", "quartiles", "CPU ms", "GB/s", "of a copy"))
    document = json.loads(path.read_text())
    assert [row["conforms"] for row in document["rows"]] == [True, True, False, True]
    assert [row["ratio"] is None for row in document["rows"]] == [False, True, True, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((f"{CHEATS}:Lazy", "--against", f"{CHEATS}:Lazy"), "name another port"),
        (("ports/javascript/port.js",), "only a port in Python can be timed"),
        ((f"{CHEATS}:Lazy", "--op", "swiglu"), "no cases of a shape"),
        ((f"{CHEATS}:Lazy", "--shape", "16by64"), "'16by64' is no shape"),
    ],
)
def test_a_wrong_use_is_refused(arguments, words):
    status, output = conformance("speed", *arguments)
    assert status == 2
    assert words in output
