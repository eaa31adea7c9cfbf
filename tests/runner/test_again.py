"""A case that fails is asked again alone, in a fresh process: a command that does not reproduce it is not printed."""

from conformance.ops.cases import select
from conformance.port.launch import Launch
from conformance.report.again import alone, asked_again
from conformance.report.building import build
from conformance.report.report import Report, Settings
from conformance.report.words import paragraph
from conformance.running.runner import run_ports

CASES = select("rms_norm/either_order/float32/[!ri]*")


def reported(port: str, module: str = "bad_ports") -> Report:
    launch = Launch(f"tests.runner.{module}:{port}")
    report = build(run_ports([launch], CASES), Settings(0, "cpu", "jit"))
    return asked_again(report, CASES, alone([launch], seed=0))


def test_what_passes_alone_is_said_to():
    report = reported("TiresAfterTen", "impure_ports")
    (cause,) = report.causes
    assert cause.reproduces is False
    assert "depends on what the port was asked before" in paragraph(report, cause)
    assert cause.command not in paragraph(report, cause)


def test_what_fails_alone_too_is_repeated_by_its_command():
    report = reported("WrongDtype")
    (cause,) = report.causes
    assert cause.reproduces is True
    assert f"reproduce   {cause.command}" in paragraph(report, cause)


def test_a_known_mistake_and_a_process_that_died_are_not_asked_again():
    assert [cause.reproduces for cause in reported("EpsOutsideRoot").causes] == [None]
    assert [cause.reproduces for cause in reported("Dies").causes] == [None]
