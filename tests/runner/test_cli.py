"""The command line: exit statuses, messages, the JSON file, and a report whose commands repeat what it says."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conformance.cli import app
from conformance.cli.screen import progress
from conformance.numbers.rounding import DTYPES
from conformance.ops.cases import CASES
from conformance.ops.norms.cases import ROW_NORMS
from conformance.ops.quick import QUICK

CONFORMS, FAILS, WRONG_USAGE, NOT_RUN = 0, 1, 2, 3
ROOT = Path(__file__).parents[2]
VICTIM = "rms_norm/either_order/float32/zero_rows"
HONEST, WRONG, NO_LAYER_NORM = (f"tests.runner.bad_ports:{name}" for name in ("Honest", "EpsOutsideRoot", "NoLayerNorm"))


def conformance(*arguments: object) -> tuple[int, str]:
    """Run a command in this process: its exit status, and what it prints with frames and line breaks gone."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result.exit_code, " ".join(re.sub(r"\x1b\[[\d;]*m|[│╭╮╰╯─]", " ", result.output).split())


def conformance_lines(*arguments: object) -> list[str]:
    """What a command prints, line by line."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments]).output.splitlines()


def in_words(value: object) -> str:
    """A parameter's part of a test's id: the arguments, by their last parts."""
    return " ".join(re.split("[/:]", word)[-1] for word in value) if isinstance(value, list | tuple) else ""


def in_a_shell(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does."""
    command = [sys.executable, "-m", "conformance", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def hostile(*way: str) -> str:
    return shlex.join([sys.executable, str(Path(__file__).with_name("hostile_ports.py")), *way])


def causes(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The paragraphs of a printed report that say what is wrong, without the names of temporary folders."""
    paragraphs = re.sub(r"\S*(/outputs\.safetensors)| +$", r"\1", result.stdout, flags=re.MULTILINE).split("\n\n")
    return [paragraph for paragraph in paragraphs if "reproduce" in paragraph]


def read_report(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((HONEST,), CONFORMS, "conforms: 1 passed"),
        ((WRONG,), FAILS, "does not conform: 1 failed"),
        ((HONEST, WRONG), FAILS, "does not conform: 1 passed, 1 failed"),
        (("--exec", hostile("no_file")), FAILS, "does not conform: 1 error"),
        (("no_such_module",), NOT_RUN, "no_such_module could not be run: ModuleNotFoundError: No module named"),
        (("--exec", "./no_such_program"), NOT_RUN, "./no_such_program could not be run: "),
        ((HONEST, "no_such_module"), NOT_RUN, "1 passed"),
        (("--op", "layer_norm"), WRONG_USAGE, "no case of layer_norm matches"),
    ],
    ids=in_words,
)
def test_the_exit_status_says_how_it_went(arguments, status, words):
    exit_status, output = conformance("run", *arguments, "--case", VICTIM)
    assert exit_status == status
    assert words in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--op", "silu"), "'silu' is not one of 'rms_norm', 'layer_norm'"),
        (("run", "--dtype", "float8"), "'float8' is not one of 'float64', 'float32', 'bfloat16', 'float16'"),
        (("run", "--mode", "warp"), "'warp' is not one of 'jit', 'eager'"),
        (("run", "--seed", "-1"), "--seed"),
        (("run", "--seed", "fresh"), "'fresh' is neither a whole number from 0 on nor `random`"),
        (("run", "--timeout", "0"), "--timeout"),
        (("run", "--sed", "7"), "No such option: --sed"),
        (("run", "--case", "*/tiny_row"), "no case matches '*/tiny_row'"),
        (("run", "--case", f"{VICTIM}s"), f"did you mean {VICTIM}?"),
        (
            ("run", "--case", "*/rank_4", "--op", "rms_norm", "--dtype", "float16"),
            "no case of rms_norm in float16 matches '*/rank_4'",
        ),
        (("run", "--case", "*/random", "--case", "*/tiny_row"), "no case matches '*/tiny_row'"),
        (("run", "--exclude", f"{VICTIM}s"), f"no case matches '{VICTIM}s'; did you mean {VICTIM}?"),
        (("run", "--case", VICTIM, "--exclude", "*/zero_rows"), "every case that is asked for is excluded"),
        (("run", "--shape", "4096x8192"), "say of which --op and --dtype, or --case"),
        (("run", "--shape", "4,5", "--op", "rms_norm", "--dtype", "float32"), "'4,5' is no shape, such as 4096x8192"),
        (("run", "--shape", "4x5", "--op", "rope", "--dtype", "float32"), "no case of rope in float32 matches"),
        (("run", "--shape", "9999999x999999", "--op", "rms_norm", "--dtype", "float32"), "GiB are free"),
        (("list", "--case", "nothing"), "no case matches 'nothing'"),
        (("list", "mistaken"), "'mistaken' is not one of"),
        (("explain",), "Missing argument 'ID'"),
        (("explain", "nothing"), "no case matches 'nothing'"),
        (("explain", "rms_norm/*/zero_rows"), "6 cases match 'rms_norm/*/zero_rows'; name one, such as rms_norm/"),
        (("runn",), "No such command 'runn'"),
        ((), "Usage:"),
    ],
    ids=in_words,
)
def test_wrong_usage_says_what_is_wrong(arguments, words):
    status, output = conformance(*arguments)
    assert status == WRONG_USAGE
    assert words in output


def test_a_report_that_could_not_be_written_is_refused_before_any_work(tmp_path):
    started, nowhere = tmp_path / "started", tmp_path / "nowhere"
    status, output = conformance("run", "--exec", f"touch {started}", "--case", VICTIM, "--json", nowhere / "report.json")
    assert status == WRONG_USAGE
    assert f"there is no folder {nowhere}" in output
    assert not started.exists()


def test_eps_outside_the_root_is_named_in_every_dtype(tmp_path):
    status, output = conformance("run", WRONG, "--case", "*/r*_eps", "--json", tmp_path / "report.json")
    assert status == FAILS
    assert "eps is added to the root, not under it" in output
    (cause,) = read_report(tmp_path / "report.json")["causes"]
    assert cause["what"] == "eps is added to the root, not under it"
    evidence = {name: cause["evidence"][name] for name in ("mistake", "agreeing", "judged", "outputs", "failing")}
    assert tuple(evidence.values()) == ("eps_outside_root", 44, 44, 132, 132)
    near_eps = [case for case in CASES if case.name == "rows_near_eps" and case.op in ROW_NORMS]
    assert {case.id for case in near_eps} < set(cause["cases"])
    assert {(case.op, case.dtype) for case in near_eps} == {(op, dtype) for op in ROW_NORMS for dtype in DTYPES}


@pytest.mark.parametrize(
    ("ports", "status", "counts"),
    [
        ([HONEST], CONFORMS, {"pass": 4}),
        ([WRONG], FAILS, {"fail": 4}),
        ([HONEST, NO_LAYER_NORM], CONFORMS, {"pass": 6, "skip": 2}),
        ([HONEST, "no_such_module"], NOT_RUN, {"pass": 4}),
        (["no_such_module"], NOT_RUN, {}),
    ],
    ids=in_words,
)
def test_json_counts_every_case(tmp_path, ports, status, counts):
    path = tmp_path / "report.json"
    arguments = ["--case", "*/either_order/*/spike", "--seed", 3, "--mode", "eager", "--device", "mars", "--json", path]
    assert conformance("run", *ports, *arguments)[0] == status
    report = read_report(path)
    assert {name: report["settings"][name] for name in ("seed", "mode", "device")} == {
        "seed": 3,
        "mode": "eager",
        "device": "mars",
    }
    assert report["exit_status"] == status
    assert [port["port"] for port in report["ports"]] == ports
    failures = {"no_such_module": "ModuleNotFoundError: No module named 'no_such_module'"}
    assert [port["failure"] for port in report["ports"]] == [failures.get(port, "") for port in ports]
    assert {name: sum(cell["statuses"].get(name, 0) for cell in report["matrix"]) for name in counts} == counts
    assert {name: [verdict["status"] for verdict in report["verdicts"]].count(name) for name in counts} == counts
    assert len(report["verdicts"]) == sum(counts.values())


def test_verbose_shows_every_case_and_quiet_the_conclusion_alone():
    ask = ["run", WRONG, "--case", "rms_norm/*/float32/rows_*_eps"]
    plain, verbose, quiet = (conformance_lines(*ask, *how) for how in ((), ("--verbose",), ("--quiet",)))
    cases = [line for line in verbose if line.startswith("fail ") and "/rows_" in line]
    assert len(cases) == 3
    assert cases[0].startswith(f"fail     {WRONG}  rms_norm/either_order/float32/rows_near_eps  y ")

    def untimed(lines: list[str]) -> list[str]:
        """Without the seconds it took, and the progress that is told after some."""
        return [re.sub(r"in .* s", "", line) for line in lines if not re.match(r"\d+ s: ", line)]

    assert untimed([line for line in verbose if line not in cases]) == untimed(plain)
    assert len(quiet) == 1
    assert quiet[0].startswith("does not conform: 3 failed in ")


def waited(file: Callable[[], str], words: str, seconds: float = 10.0) -> bool:
    """Whether what is written has some words in it before long."""
    until, said = time.monotonic() + seconds, ""
    while words not in said and time.monotonic() < until:
        time.sleep(0.01)
        said += file()
    return words in said


def test_progress_is_told_line_by_line_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr("conformance.cli.screen.INTERVAL", 0.02)

    def written() -> str:
        return capsys.readouterr().err

    with progress(["mine", "yours"], 5) as advance:
        assert waited(written, "mine: 0 of 5 cases\n")
        advance("mine")
        advance("mine", failed=True)
        assert waited(written, "mine: 2 of 5 cases, 1 failure so far\nyours: 0 of 5 cases\n")
    written()
    with progress(["mine"], 5, quiet=True) as advance:
        advance("mine")
        time.sleep(0.1)
    assert written() == ""


def test_quiet_silences_the_progress_of_a_run():
    """A port that needs longer than the interval for an answer, so that a line is due."""
    program = "import conformance.cli.screen as s; s.INTERVAL = 0.01; from conformance.cli import main; main()"
    command = [sys.executable, "-c", program, "run", WRONG, "--case", VICTIM]
    loud, quiet = (
        subprocess.run([*command, *how], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False).stderr
        for how in ((), ("--quiet",))
    )
    assert f"{WRONG}: 0 of 1 cases\n" in loud
    assert quiet == ""


def test_a_report_is_plain_but_on_a_terminal_and_colourless_where_that_is_asked():
    """On a pseudo-terminal: with colours, unless NO_COLOR says not (https://no-color.org)."""
    ask = [sys.executable, "-m", "conformance", "run", HONEST, "--case", VICTIM]

    def on_a_terminal(**environment: str) -> str:
        ours, theirs = pty.openpty()
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        subprocess.run(ask, stdout=theirs, env=kept | {"TERM": "xterm-256color"} | environment, timeout=60, check=True)
        os.close(theirs)
        said = b""
        with suppress(OSError):  # at the end, on Linux
            while part := os.read(ours, 65536):
                said += part
        os.close(ours)
        return said.decode()

    colour = re.compile(r"\x1b\[[\d;]*3\dm")
    assert colour.search(on_a_terminal())
    plain = on_a_terminal(NO_COLOR="1")
    assert not colour.search(plain)
    assert "conforms" in plain
    assert "\x1b" not in in_a_shell(*ask[3:]).stdout


def test_one_shape_is_asked_in_every_dialect(tmp_path):
    ask = ["--shape", "40x9", "--op", "rms_norm", "--dtype", "float32", "--json", tmp_path / "r.json"]
    status, said = conformance("run", HONEST, *ask)
    assert status == CONFORMS
    assert "conforms: 2 passed" in said
    report = read_report(tmp_path / "r.json")
    assert [verdict["shape"] for verdict in report["verdicts"]] == [[40, 9]] * 2
    assert report["settings"]["shape"] == "40x9"


def test_a_shape_that_fails_says_how_to_ask_it_again():
    port = "tests.runner.impure_ports:OffsetsWeight"
    first = in_a_shell("run", port, "--shape", "40x9", "--op", "rms_norm", "--dtype", "float32")
    (cause,) = causes(first)
    command = re.search("reproduce +(.*)", cause)[1]
    assert command.startswith(f"conformance run {port} --shape 40x9 --case 'rms_norm/either_order")
    again = in_a_shell(*shlex.split(command)[1:])
    assert "[40, 9]" in again.stdout
    assert "1 failed" in again.stdout


def test_a_random_seed_is_printed_and_is_another_every_time(tmp_path):
    def seed() -> int:
        status, said = conformance("run", WRONG, "--case", VICTIM, "--seed", "random", "--json", tmp_path / "r.json")
        seed = read_report(tmp_path / "r.json")["settings"]["seed"]
        assert status == FAILS
        assert said.endswith(f"seed {seed}")
        assert f"--case '{VICTIM}' --seed {seed}" in said
        return seed

    assert seed() != seed()


def test_an_op_that_a_port_lacks_is_not_judged():
    status, output = conformance("run", NO_LAYER_NORM, "--op", "layer_norm", "--dtype", "float16")
    assert status == NOT_RUN
    assert "not judged: 66 skipped" in output
    assert "no op layer_norm" in output


def test_a_program_is_run_with_its_arguments(tmp_path):
    """Beside a port in Python, which costs it nothing; split as a shell would, and not run by one."""
    spaced = tmp_path / "a b"
    status, output = conformance("run", HONEST, "--exec", hostile("tidies_up", str(spaced)), "--case", VICTIM)
    assert status == FAILS
    assert "does not conform: 1 passed, 1 error" in output
    assert spaced.read_text() == "tidy"


def test_a_port_is_not_waited_for_longer_than_asked():
    status, output = conformance("run", "--exec", hostile("hangs"), "--case", VICTIM, "--timeout", "1.5")
    assert status == FAILS
    assert "the port did not answer within 1.5 s" in output


def test_an_exception_is_shown_with_the_ports_own_line_and_one_that_says_nothing_by_its_type(tmp_path):
    port = tmp_path / "silent.py"
    port.write_text(
        textwrap.dedent("""
            import shutil
            from conformance.port import Port

            class Silent(Port):
                def rms_norm(self, x, weight, *, eps):
                    raise AttributeError

                def layer_norm(self, x, weight, bias, *, eps):
                    shutil.copyfile("nothing", "nowhere")
        """)
    )
    status, said = conformance("run", port, "--case", "*_norm/either_order/float32/random", "--op", "rms_norm")
    assert status == FAILS
    assert "silent.py: AttributeError (1 case: float32)" in said
    _, said = conformance("run", port, "--case", "*_norm/either_order/float32/random", "--op", "layer_norm")
    assert f'where File "{port}", line 10, in layer_norm' in said


def test_a_seed_gives_other_inputs(tmp_path):
    def expected(seed: int) -> float:
        conformance("run", WRONG, "--case", "rms_norm/*/float32/rows_near_eps", "--seed", seed, "--json", tmp_path / "r.json")
        return read_report(tmp_path / "r.json")["verdicts"][0]["outputs"][0]["worst"]["expected"]

    first, again, other = map(expected, (7, 7, 8))
    assert first == again != other


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("port", "options"),
    [
        ([WRONG], ["--seed", "7", "--mode", "eager", "--device", "mars"]),
        (["--exec", hostile("no_file", "_" * 99)], []),
        (["--exec", hostile("no_file", '"$HOME"')], []),
        (["--exec", "./no_file"], []),
    ],
    ids=["module", "long", "quotes", "bare"],
)
def test_the_command_that_a_report_prints_shows_the_same_failure(port, options, tmp_path):
    (tmp_path / "no_file").write_text(f"#!/bin/sh\nexec {hostile('no_file')}\n")
    (tmp_path / "no_file").chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = in_a_shell("run", *port, "--case", "rms_norm/*/float32/zero_rows", *options, cwd=tmp_path, env=environment)
    (cause,) = causes(first)
    command = re.search("reproduce +(.*)", cause)[1].replace("conformance", f"{sys.executable} -m conformance", 1)
    again = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert causes(again) == [cause]


def test_one_difference_is_not_many(tmp_path, monkeypatch):
    monkeypatch.setattr("conformance.tools.fixtures.check", lambda folder: ["one.safetensors: gone"])
    assert conformance("fixtures", "check")[1].endswith(": 1 difference")
    monkeypatch.setattr("conformance.tools.fixtures.check", lambda folder: ["one", "two"])
    assert conformance("fixtures", "check")[1].endswith(": 2 differences")


@pytest.mark.parametrize("command", ["run", "properties", "list", "explain", "serve", "fixtures"])
def test_help_explains_every_command(command):
    status, output = conformance(command, "--help")
    assert status == CONFORMS
    assert f"{command} [OPTIONS]" in output
    assert command in conformance("--help")[1]


def test_a_port_is_found_where_the_command_is_run(tmp_path):
    """As for a user who has installed the kit and stands in another project; Python itself need not look there."""
    (tmp_path / "my_norms").mkdir()
    (tmp_path / "my_norms" / "port.py").write_text(
        textwrap.dedent("""
            from tests.runner.bad_ports import Honest

            class Port(Honest):
                name = "mine"
        """)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    result = in_a_shell("run", "my_norms", "--case", VICTIM, "--json", "r.json", cwd=tmp_path, env=environment)
    assert result.returncode == CONFORMS, result.stdout
    assert read_report(tmp_path / "r.json")["ports"][0]["hello"]["name"] == "mine"


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--exec", ""], WRONG_USAGE),
        (["--exec", "node 'port.js"], WRONG_USAGE),
        ([HONEST, "--json", "."], WRONG_USAGE),
        (["--exec", hostile("other_protocol")], NOT_RUN),
        (["--exec", hostile("nests")], FAILS),
        (["--exec", hostile("no_file", "[/b]")], FAILS),
    ],
    ids=["no program", "open quotation", "folder for a file", "another protocol", "deep nesting", "brackets"],
)
def test_no_stack_trace_is_shown(arguments, status):
    result = in_a_shell("run", *arguments, "--case", VICTIM)
    assert "Traceback" not in result.stderr
    assert result.returncode == status


@pytest.mark.parametrize("port", [["--exec", hostile("no_file")], ["--exec", "./no_such_program"]], ids=["runs", "does not"])
def test_every_pipe_is_closed(port, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "always::ResourceWarning")
    assert in_a_shell("run", *port, "--case", VICTIM, "--quiet").stderr == ""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=lambda sign: sign.name)
def test_an_interrupted_run_takes_its_ports_along(sign, wait_for_processes):
    command = [sys.executable, "-m", "conformance", "run", "--exec", hostile("hangs"), "--case", VICTIM]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        assert wait_for_processes(3)  # itself, the port and the port's own child
        run.send_signal(sign)
        try:
            assert wait_for_processes(0, seconds=15.0)
        finally:
            run.kill()


def test_quick_asks_few_cases_and_says_so(tmp_path):
    status, said = conformance("run", WRONG, "--quick", "--op", "rms_norm", "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert status == FAILS
    assert "the quick cases alone" in said
    assert report["settings"]["quick"]
    assert {verdict["case"] for verdict in report["verdicts"]} == {case.id for case in QUICK if case.op == "rms_norm"}


@pytest.mark.parametrize("other", [("--shape", "2x3", "--op", "rms_norm", "--dtype", "float32"), ("--cases", "some.json")])
def test_quick_is_of_the_kits_own_cases(other):
    status, said = conformance("run", HONEST, "--quick", *other)
    assert status == WRONG_USAGE
    assert "the quick cases are the kit's own" in said
