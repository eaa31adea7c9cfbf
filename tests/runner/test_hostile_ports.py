"""Whatever a port does costs the case it does it on: the others are judged, nothing is left running, no file is left behind."""

import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from conformance.ops.cases import select
from conformance.ops.norms.cases import ROW_NORMS
from conformance.port.launch import Launch
from conformance.running.runner import run_port
from tests.runner.test_cli import CONFORMS, FAILS, NOT_RUN, conformance

BEFORE, VICTIM, AFTER = (select(f"rms_norm/either_order/float32/{name}")[0] for name in ("std_0.05", "zero_rows", "random"))
MEMORY = 200_000  # kilobytes that a flood may add to what this process takes; all of it would be many times that
GIVEN = 1.5  # seconds for an answer, where there will be none


pytestmark = pytest.mark.usefixtures("slow_start")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def peak() -> int:
    """The most memory that this process has ever had, in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def hostile(*way: str, timeout: float = 60.0) -> Launch:
    program = (sys.executable, "-S", str(Path(__file__).with_name("hostile_ports.py")), *way)
    return Launch(way[0], program, timeout=timeout)


def costs(*way: str, timeout: float = 60.0) -> tuple[str, str]:
    """What becomes of the victim; the cases before and after it pass, and memory stays within bounds."""
    before = peak()
    first, victim, last = run_port(hostile(*way, timeout=timeout), (BEFORE, VICTIM, AFTER)).verdicts
    assert [(verdict.status, verdict.message) for verdict in (first, last)] == [("pass", "")] * 2
    assert peak() - before < MEMORY
    return victim.status, victim.message


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] not in "ZX"


def is_left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("exits_0", "the port exited with status 0"),
        ("exits_1", "the port exited with status 1"),
        ("exits_amid_its_answer", "the port exited with status 0"),
        ("is_killed", "the port was killed by SIGKILL, as happens where memory runs out"),
        ("crashes", "the port was killed by SIGSEGV"),
        ("kills_its_group", "the port was killed by SIGTERM"),
        ("runs_out_of_memory", "MemoryError"),
        ("leaves_a_child", "the port exited with status 1: out of memory"),
        ("detaches_and_exits", "the port exited with status 4"),
        ("floods_stdout", "the port wrote to stdout what is not a protocol message: 'xxx"),
        (
            "floods_stdout_with_lines",
            "the port wrote to stdout what is not a protocol message: 'loss 0.31'; print to stderr instead",
        ),
        ("prints", "the port wrote to stdout what is not a protocol message: 'loss 0.31'; print to stderr instead"),
        ("prints_before_its_answer", "the port wrote to stdout what is not a protocol message: 'loss 0.31'; print to stderr"),
        ("prints_after_its_answer", r"the port wrote to stdout more than its answer: 'loss 0.31\n'; print to stderr instead"),
        ("lists", "the port wrote to stdout what is not a protocol message: '[1, 2, 3]'"),
        ("nests", "the port wrote to stdout what is not a protocol message: '[[["),
        ("nests_an_id", "the port wrote to stdout what is not a protocol message: "),
        ("counts_to_infinity", "the port wrote to stdout what is not a protocol message: "),
        ("is_not_utf8", "the port wrote to stdout what is not a protocol message: "),
        ("is_a_surrogate", r"\ud800\x1b[2J"),
        ("nan_id", "the port answered request 1 with id nan"),
        ("wrong_id", "the port answered request 1 with id -1"),
        ("true_id", "the port answered request 1 with id True"),
        ("no_id", "the port answered request 1 with id None"),
        ("wrong_type", "the port answered a case with 'perhaps'"),
        ("hello_again", "the port answered a case with 'hello'"),
        ("no_list", "the port said done, but field 'overwrote' is 'x'; it must be a list of strings"),
        ("answers_twice", 'the port wrote to stdout more than its answer: \'{"type": "done", "id": 1}'),
        ("answers_ahead", 'the port wrote to stdout more than its answer: \'{"type": "done", "id": 2}'),
        ("answers_the_next", "the port answered request 1 with id 2"),
        ("no_file", "the port said done, but outputs.safetensors: no such file"),
        ("breaks_file", "outputs.safetensors: not a readable safetensors file: "),
        ("writes_half", "outputs.safetensors: not a readable safetensors file: "),
        ("writes_an_empty_file", "outputs.safetensors: not a readable safetensors file: "),
        ("header_of_2_63", "outputs.safetensors: not a readable safetensors file: "),
        ("header_is_nested", "outputs.safetensors: not a readable safetensors file: "),
        ("huge_shape", "outputs.safetensors: not a readable safetensors file: "),
        ("huge_and_empty_shape", "outputs.safetensors: tensor 'y' has shape [0, 9223372036854775808]: "),
        ("negative_shape", "outputs.safetensors: not a readable safetensors file: "),
        ("fractional_shape", "outputs.safetensors: not a readable safetensors file: "),
        ("long_offsets", "outputs.safetensors: not a readable safetensors file: "),
        ("sparse_file", "not a readable safetensors file: 1099511627776 bytes; at most 536870912 are expected"),
        ("folder_for_outputs", "outputs.safetensors: not a readable safetensors file: not a regular file"),
        ("fifo_for_outputs", "outputs.safetensors: not a readable safetensors file: not a regular file"),
        ("device_for_outputs", "outputs.safetensors: not a readable safetensors file: not a regular file"),
        ("link_to_itself", "outputs.safetensors: not a readable safetensors file: "),
        ("link_to_nothing", "outputs.safetensors: no such file"),
        ("deletes_the_folder", "outputs.safetensors: no such file"),
        ("file_for_folder", "outputs.safetensors: "),
    ],
)
def test_it_costs_one_case(way, words, folder):
    status, message = costs(way)
    assert status == "error"
    for part in words.split("{folder}"):
        assert part in message
    assert is_left(folder) == []


@pytest.mark.parametrize("way", ["hangs", "floods_stderr"])
def test_hanging_costs_one_case_and_the_time_given(way, folder):
    began = time.monotonic()
    status, message = costs(way, timeout=GIVEN)
    assert status == "error"
    assert message.startswith(f"the port did not answer within {GIVEN:g} s")
    assert GIVEN <= time.monotonic() - began < 30
    assert is_left(folder) == []


@pytest.mark.parametrize(
    ("way", "timeout", "words"),
    [
        ("exits_after_its_answer", 60.0, "exited with status 3"),
        ("hangs_after_its_answer", GIVEN, f"did not answer within {GIVEN:g} s"),
        ("closes_stdin", 60.0, "closed its stdin"),
    ],
)
def test_what_it_does_after_its_answer_costs_that_answer(way, timeout, words, folder):
    assert costs(way, timeout=timeout) == ("error", f"the port answered, and then {words}")
    assert is_left(folder) == []


def test_a_case_skipped_since_is_not_to_blame():
    """What comes out later is laid to the case that was asked last."""
    (lacked,) = select("gelu/erf/float32/random")
    run = run_port(hostile("exits_after_its_answer"), (VICTIM, lacked, AFTER))
    assert [verdict.status for verdict in run.verdicts] == ["error", "skip", "pass"]


def test_an_answer_twice_is_not_the_next_one(folder):
    """Though the port waits for the next question first."""
    assert costs("answers_again_when_asked_again") == ("error", "the port answered, and then answered request 2 with id 1")
    assert is_left(folder) == []


@pytest.mark.parametrize(
    "way",
    ["says_much_on_stderr", "litters", "deletes_its_inputs", "edits_its_inputs", "writes_on_and_on", "is_slow"],
)
def test_what_harms_nobody_passes_and_is_tidied_up(way, folder):
    assert costs(way) == ("pass", "")
    assert is_left(folder) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize(("way", "status", "timeout"), [("detaches", "pass", 60.0), ("detaches_and_hangs", "error", GIVEN)])
def test_a_child_in_a_session_of_its_own_ends_with_the_port_and_a_bystander_does_not(way, status, timeout, folder, tmp_path):
    """The one whose parent is gone is known by its environment, the one whose environment is empty by its parent."""
    bystander = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        assert costs(way, str(tmp_path / "pid"), timeout=timeout)[0] == status
        assert not is_alive(int((tmp_path / "pid").read_text()))
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    assert is_left(folder) == []


def test_a_link_in_place_of_the_folder_is_removed_and_not_followed(folder):
    assert costs("links_the_folder") == ("pass", "")
    assert is_left(folder) == ["elsewhere"]
    assert sorted(path.name for path in (folder / "elsewhere").iterdir()) == ["inputs.safetensors", "outputs.safetensors"]


@pytest.mark.parametrize(("way", "words"), [("not_a_number", ""), ("wrong_dtype", "y is float64; expected float32")])
def test_wrong_numbers_fail(way, words, folder):
    assert costs(way) == ("fail", words)
    assert is_left(folder) == []


def test_a_reason_that_is_no_text_is_shown_as_it_is():
    assert costs("no_text") == ("skip", "{'because': None}")


def test_an_answer_from_memory_passes_with_no_seed_but_its_own():
    port = Launch("tests.runner.bad_ports:AnswersFromMemory")
    cases = select(("*/either_order/float32/random", "*/cast_then_scale/bfloat16/random"), op=ROW_NORMS)
    for seed, status in {0: "pass", 7: "fail"}.items():
        result = run_port(port, cases, seed)
        assert [verdict.status for verdict in result.verdicts] == [status] * 4


@pytest.mark.parametrize("way", ["steers", "has_odd_dtypes"])
@pytest.mark.parametrize(
    "command",
    [
        ("run", "--case", "rms_norm/either_order/*/r*"),
        ("identify",),
        ("fuzz", "--seconds", 1),
        ("properties", "--op", "rms_norm"),
    ],
)
def test_no_command_trips_over_what_a_port_says(way, command):
    status, said = conformance(*command, "--exec", shlex.join(hostile(way).command))
    assert status in (CONFORMS, FAILS, NOT_RUN)
    assert "\x1b" not in said
