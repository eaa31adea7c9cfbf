"""Verdicts to a report: counts, causes, the JSON, and what a person sees."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from itertools import chain
from string import ascii_lowercase

import numpy as np
import pytest
from rich.console import Console

from conformance.judging.compare import OutputVerdict, Verdict, compare
from conformance.mistakes import MISTAKES, Mistake
from conformance.numbers.rounding import store
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORMS
from conformance.port.protocol import Hello
from conformance.report import building
from conformance.report.building import build
from conformance.report.console import CAUSES_SHOWN, show
from conformance.report.machine import as_json
from conformance.report.report import FAILS, NOT_RUN, OutputEntry, Report, Settings
from conformance.report.words import agreement, how_far_off, own_frame
from conformance.running.runner import PortRun, as_expected

Array = np.ndarray
HELLO = Hello("a port", ops=("rms_norm",), dtypes=("float32",), orders=(), weight_offsets=(0,), gradients=True)
(WEIGHT_MISSING,) = (mistake for mistake in MISTAKES if mistake.id == "weight_missing")
SMALL, LARGE = "rms_norm/either_order/float32/random", "rms_norm/either_order/float32/rows_8192"


def right(y: Array) -> Array:
    return y


def sevens(y: Array) -> Array:
    return np.full_like(y, 7)


def one_nan(y: Array) -> Array:
    y[1, 0, 5] = np.nan
    return y


def judged(id_: str, y: Callable[[Array], Array] = right, *, made: Mistake | None = None) -> Verdict:
    """The verdict on a port that returns what is expected, or what a mistake makes of it, but for y."""
    (case,) = select(id_)
    expected = golden(case)
    exact = made.outputs(case) if made else expected.outputs
    outputs = {name: store(output.value, output.dtype) for name, output in exact.items()}
    return compare("port", expected, outputs | {"y": y(outputs["y"])}, tuple(case.outputs))


def unjudged(id_: str, status: str, message: str = "") -> Verdict:
    (case,) = select(id_)
    return Verdict("port", case, status, message=message)


def report(*verdicts: Verdict, **settings) -> Report:
    settings = {"seed": 0, "device": "cpu", "mode": "jit"} | settings
    return build([PortRun("port", HELLO, verdicts)], Settings(**settings), 1.25)


def shown(a_report: Report, width: int = 200, **options) -> list[str]:
    """The lines that a person sees."""
    console = Console(file=StringIO(), width=width, **options)
    show(a_report, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_matrix_counts_what_was_asked():
    verdicts = [
        judged("layer_norm/either_order/float32/random"),
        judged("rms_norm/either_order/float32/random"),
        judged("rms_norm/either_order/float32/spike", sevens),
        unjudged("rms_norm/either_order/float32/std_0.05", "error"),
        unjudged("rms_norm/scale_then_cast/float16/random", "skip"),
    ]
    matrix = report(*verdicts).matrix
    assert {(cell.op, cell.dtype): Counter(cell.statuses) for cell in matrix} == {
        ("rms_norm", "float32"): Counter({"pass": 1, "fail": 1, "error": 1}),
        ("rms_norm", "float16"): Counter({"skip": 1}),
        ("layer_norm", "float32"): Counter({"pass": 1}),
    }
    assert [cell.op for cell in matrix] == ["rms_norm", "rms_norm", "layer_norm"]
    assert [cell.ratio for cell in matrix] == [verdicts[2].ratio, 0.0, verdicts[0].ratio]
    assert [cell.conforms for cell in matrix] == [False, True, True]


def test_every_failure_has_one_cause():
    """Here two: an error, named by its message, and numbers that no known mistake explains."""
    failures = [judged(f"rms_norm/either_order/{name}", sevens) for name in ("float32/random", "float64/random")]
    ids = (LARGE, "rms_norm/either_order/float32/spike", "rms_norm/either_order/float32/width_4096")
    errors = [unjudged(id_, "error", "out of memory") for id_ in ids]
    others = [judged("layer_norm/either_order/float32/random"), unjudged("rms_norm/either_order/float32/rank_4", "skip", "why")]
    causes = report(*failures, *others, *errors).causes
    assert sorted(chain(*(cause.cases for cause in causes))) == sorted(each.case.id for each in failures + errors)
    error, failure = causes
    assert (error.what, error.example, error.output) == ("out of memory", ids[1], "")
    assert failure.cases == tuple(each.case.id for each in failures)
    assert (failure.evidence, failure.output) == (None, "y")
    assert "random" in failure.what


def test_a_known_mistake_is_one_cause_for_all_its_cases():
    ids = [f"{op}/either_order/float32/{name}" for op in ROW_NORMS for name in ("random", "spike", "no_weight")]
    verdicts = [judged(id_, made=WEIGHT_MISSING) for id_ in ids]
    assert [verdict.status for verdict in verdicts] == ["fail", "fail", "pass"] * 2
    cause, other = report(*verdicts, judged("rms_norm/either_order/float32/std_0.05", sevens)).causes
    assert cause.what == WEIGHT_MISSING.sentence
    assert agreement(cause.evidence).startswith("weight_missing explains most of the 13 failing outputs (12), to within 0.00 ")
    assert agreement(cause.evidence).endswith(" tolerances, and agrees with 6 of 7 cases")
    assert [case.rpartition("/")[2] for case in cause.cases] == ["random", "spike"] * 2
    assert (other.cases, other.evidence) == (("rms_norm/either_order/float32/std_0.05",), None)


@pytest.mark.parametrize(
    ("runs", "status"),
    [
        ([["pass", "pass"]], 0),
        ([["pass", "skip"]], 0),
        ([["pass"], ["pass"]], 0),
        ([["pass", "fail"]], 1),
        ([["pass", "error"]], 1),
        ([["skip", "error"]], 1),
        ([["pass"], ["fail"]], 1),
        ([[]], 3),
        ([["skip", "skip"]], 3),
        ([["pass"], []], 3),
        ([["fail"], []], 3),
        ([["pass"], ["skip"]], 3),
    ],
    ids=str,
)
def test_nothing_passes_by_not_running(runs, status):
    (case,) = select(SMALL)
    port_runs = [
        PortRun(name, HELLO, tuple(Verdict(name, case, each) for each in run)) for name, run in zip("ab", runs, strict=False)
    ]
    assert build(port_runs, Settings(0, "cpu", "jit")).exit_status == status


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.0, "0.00"), (0.126, "0.13"), (9.99, "9.99"), (37.0, "4e1"), (3.2e8, "3e8"), (1.3e14, "1e14"), (math.inf, "inf")],
)
def test_an_error_is_shown_in_units_of_its_tolerance(ratio, words):
    (case,) = select(SMALL)
    verdict = Verdict("port", case, "pass", (OutputVerdict("y", "float32", "float32", ratio, 0, 1, None, np.zeros(1)),))
    row = next(line for line in shown(report(verdict)) if line.startswith("port  ") and "rms_norm" in line)
    assert row.split() == ["port", "rms_norm", "1/1", words]


def test_json_says_it_all_without_a_nan():
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    verdicts = [
        judged(SMALL, one_nan),
        judged("rms_norm/either_order/float32/spike"),
        unjudged("rms_norm/either_order/float32/rank_4", "skip", "on Sundays"),
        unjudged(LARGE, "error", "no"),
    ]
    whole = report(*verdicts, seed=3, device="mars")
    document = json.loads(as_json(whole), parse_constant=refuse)
    assert [verdict["status"] for verdict in document["verdicts"]] == ["fail", "pass", "skip", "error"]
    assert [verdict["message"] for verdict in document["verdicts"]] == ["", "", "on Sundays", "no"]
    y = document["verdicts"][0]["outputs"][0]
    assert (y["output"], y["ratio"], y["outside"], y["size"]) == ("y", "inf", 1, 198)
    assert (y["worst"]["index"], y["worst"]["actual"]) == ([1, 0, 5], "nan")
    statuses = {"fail": 1, "pass": 1, "skip": 1, "error": 1}
    assert document["matrix"] == [{"port": "port", "op": "rms_norm", "dtype": "float32", "statuses": statuses, "ratio": "inf"}]
    assert [cause["cases"] for cause in document["causes"]] == [[SMALL], [LARGE]]
    assert document["causes"][0]["command"] == f"conformance run port --case '{SMALL}' --seed 3 --device mars"
    assert document["exit_status"] == 1
    assert document["ports"][0]["hello"]["dtypes"] == ["float32"]


def test_what_a_person_sees():
    failure = judged(SMALL, one_nan)
    lower, upper = (end[1, 0, 5] for end in golden(failure.case).outputs["y"].interval())
    skip = unjudged("rms_norm/scale_then_cast/float16/random", "skip", "no dtype float16")
    lines = shown(report(failure, judged("rms_norm/either_order/float32/spike"), skip, skip, seed=7, mode="eager"))
    assert [line.split() for line in lines[:2]] == [
        ["port", "op", "float32", "float16"],
        ["port", "rms_norm", "1/2", "inf", "skipped"],
    ]
    for words in [
        "no dtype float16",
        failure.case.exposes,
        f"{SMALL}  [2, 3, 33]",
        f"y[1, 0, 5]  expected {lower:.9g} to {upper:.9g}, got nan",
        "1 of 198 ",
        f"conformance run port --case '{SMALL}' --seed 7 --mode eager",
    ]:
        assert sum(words in line for line in lines) == 1, words
    assert lines[-1] == "does not conform: 1 passed, 1 failed, 2 skipped in 1.2 s, seed 7"


def test_a_port_that_could_not_be_run_is_named():
    runs = (PortRun("no_module", None, (), "No module named 'no_module'"),)
    lines = shown(build(runs, Settings(0, "cpu", "jit"), 0.5))
    assert lines == ["no_module could not be run: No module named 'no_module'", "", "not judged: no case was run in 0.5 s"]


def test_the_first_causes_are_shown_and_the_rest_counted():
    some = select("rms_norm/either_order/float32/*")[: CAUSES_SHOWN + 2]
    messages = [f"error {letter}" for letter in ascii_lowercase[: CAUSES_SHOWN + 2]]
    verdicts = [unjudged(case.id, "error", message) for case, message in zip(some, messages, strict=True)]
    lines = shown(report(*verdicts))
    assert [message in " ".join(lines) for message in messages] == [True] * CAUSES_SHOWN + [False] * 2
    assert "… and 2 more causes; --json FILE writes them all." in lines
    assert "… and 1 more cause; --json FILE writes them all." in shown(report(*verdicts[:-1]))


def test_messages_that_differ_in_numbers_or_addresses_are_one_cause():
    cases = select("rms_norm/either_order/float32/*")
    messages = ("node MatMul_12 failed at 0x7f01", "node MatMul_340 failed at 0xabc", "node Add_12 failed at 0x7f01")
    verdicts = [unjudged(case.id, "error", message) for case, message in zip(cases, messages, strict=False)]
    verdicts += [unjudged(cases[3].id, "error", "y is float64"), unjudged(cases[4].id, "error", "y is float16")]
    causes = report(*verdicts).causes
    assert [(cause.what, len(cause.cases)) for cause in causes] == [
        ("node MatMul_12 failed at 0x7f01 (and 1 message with other numbers)", 2),
        ("node Add_12 failed at 0x7f01", 1),
        ("y is float64", 1),
        ("y is float16", 1),
    ]


def test_what_is_too_large_to_be_diagnosed_is_not_called_unknown(monkeypatch):
    monkeypatch.setattr("conformance.report.causes.DIAGNOSED", 1_000)
    small, large = report(judged(SMALL, sevens), judged(LARGE, sevens)), report(judged(LARGE, sevens))
    assert "no known mistake explains it" in small.causes[0].what
    assert "so large a case is not diagnosed" in large.causes[0].what
    mistake = next(mistake for mistake in MISTAKES if mistake.id == "weight_missing")
    assert [cause.evidence for cause in report(judged(LARGE, made=mistake)).causes] == [None]


OUTPUT = OutputEntry("y", "float32", "float32", (448,), 2.0, 32, 448, None, None, None, together=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "32 of 448 elements outside, by up to 2.00 tolerances"),
        ({"outside": 1, "size": 1}, "1 of 1 element outside, by up to 2.00 tolerances"),
        ({"together": False}, "32 of 448 elements outside; all together are too far off, by up to 2.00 tolerances"),
        (
            {"outside": 0, "together": False},
            "0 of 448 elements outside; all together are too far off, by up to 2.00 tolerances",
        ),
        ({"ratio": math.inf}, "32 of 448 elements outside, by more than any number of tolerances"),
        ({"ratio": math.inf, "dtype": "float64"}, "32 of 448 elements outside"),
    ],
)
def test_how_far_off_an_output_is_in_words(changes, said):
    assert how_far_off(replace(OUTPUT, **changes)) == said


@pytest.mark.parametrize(("outside", "together", "passes"), [(0, True, True), (1, True, False), (0, False, False)])
def test_an_output_passes_where_each_element_and_all_together_do(outside, together, passes):
    assert replace(OUTPUT, outside=outside, together=together).passes == passes


def frames(*files: str) -> str:
    return "Traceback (most recent call last):\n" + "".join(f'  File "{file}, in f\n    g()\n' for file in files) + "E: no\n"


KIT, LIBRARY = '/kit/conformance/port/base.py", line 1', '/env/lib/python3.12/site-packages/torch/nn.py", line 2'


@pytest.mark.parametrize(
    ("files", "own"),
    [
        ((KIT, '/home/me/my_port.py", line 7', LIBRARY, '/usr/lib/python3.12/abc.py", line 3'), '/home/me/my_port.py", line 7'),
        (
            (KIT, '/home/me/my_port.py", line 7', LIBRARY, '/home/me/kernels.py", line 8', LIBRARY),
            '/home/me/kernels.py", line 8',
        ),
        ((KIT, '/e/site-packages/p/port.py", line 4', '/e/site-packages/p/port.py", line 5', LIBRARY), 'port.py", line 5'),
        ((KIT,), KIT),
        ((), ""),
    ],
    ids=["a library below", "two files", "installed", "the kit's alone", "no trace"],
)
def test_where_is_the_ports_own_line(files, own):
    frame = own_frame(frames(*files))
    assert own in frame
    assert bool(frame) == bool(own)


def test_a_narrow_terminal_shows_the_same_words():
    """Brackets in them too: they are no markup."""
    failed = report(judged(SMALL, one_nan), unjudged(LARGE, "error", "[red]no[/] memory at [0, 1]"))
    wide, narrow = ("".join("".join(shown(failed, width)).split()) for width in (200, 79))
    assert wide == narrow
    assert "[red]no[/]memoryat[0,1]" in wide


def test_a_command_can_be_copied_from_a_narrow_terminal():
    failed = report(judged(SMALL, one_nan))
    (cause,) = failed.causes
    assert cause.command in "\n".join(shown(failed, 60, force_terminal=True, color_system=None))


def test_what_only_fails_as_expected_says_how_far_off_it_is():
    """A failure on record is reproduced by its command, and the reader wants the figure; beside a pass it is not the cell's."""
    known = as_expected(judged(SMALL, sevens), replace(HELLO, expected={SMALL: "as on record"}))
    alone, beside = report(known), report(known, judged("rms_norm/either_order/float32/zero_rows"))
    [cell], [mixed] = alone.matrix, beside.matrix
    assert (cell.ratio, alone.exit_status) == (known.ratio, NOT_RUN)
    assert known.ratio > 1 > mixed.ratio
    assert shown(alone)[-1].startswith("nothing passed: 1 as expected")


def test_a_diagnosis_that_raises_does_not_take_the_report_down(monkeypatch):
    """What fails is listed without a cause, what was raised is said once, and other ops are diagnosed as ever."""
    true_diagnose = building.diagnose

    def raises(verdicts, seed):
        if any(verdict.case.op == "rms_norm" for verdict in verdicts):
            raise AttributeError("'_Coarse' object has no attribute 'scale'")
        return true_diagnose(verdicts, seed)

    monkeypatch.setattr(building, "diagnose", raises)
    names = ("random", "spike")
    wrong = [judged(f"rms_norm/either_order/float32/{name}", sevens) for name in names]
    right_one = judged("rms_norm/either_order/float32/std_0.05")
    other = [judged(f"layer_norm/either_order/float32/{name}", made=WEIGHT_MISSING) for name in names]
    made = report(*wrong, right_one, *other)
    told, untold = made.causes
    assert made.exit_status == FAILS
    assert told.evidence.mistake == "weight_missing"
    assert untold.evidence is None
    assert untold.cases == tuple(verdict.case.id for verdict in wrong)
    failed = "outside the intervals; the diagnosis itself failed, please report it: AttributeError: '_Coarse' object has no"
    assert untold.what.startswith(failed)
    assert sum(failed in line for line in shown(made)) == 1
