"""The journey: case -> inputs -> golden -> port(inputs) -> outputs -> compare -> verdict."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from conformance.case import TAPPED, Case
from conformance.compare import Verdict, compare
from conformance.golden import Golden, golden
from conformance.process import Family, PortFailure, PortProcess
from conformance.protocol import Answer, Call, Hello, ProtocolError, encode, read_overwrote
from conformance.tensors import TensorFileError, read_tensors, write_tensors

Array = np.ndarray

CASES_OF_A_PROCESS = 100  # fewer are not worth a process of their own
STARTS_IN_A_ROW = 3  # a port that dies or hangs this often with no answer in between is not started again
NOT_ASKED = f"not asked: the port failed {STARTS_IN_A_ROW} times in a row"


@dataclass(frozen=True, slots=True)
class PortRun:
    """What became of one port: what it said of itself, and a verdict for every case.

    `failure` is set, and `hello` is not, where the port could not be run at all.
    """

    spec: str
    hello: Hello | None
    verdicts: tuple[Verdict, ...]
    failure: str = ""


Group = tuple[tuple[int, Case], ...]
"""Cases that share compiled code, each with its place among all that are asked."""
Part = tuple[list[int], Future[PortRun]]
"""What one process does: the places of the cases that it has taken, and what becomes of them."""


def run_ports(
    commands: dict[str, list[str]],
    cases: Iterable[Case],
    *,
    seed: int = 0,
    device: str = "cpu",
    mode: str = "jit",
    timeout: float = 120.0,
    jobs: int = 1,
    on_verdict: Callable[[Verdict], None] = lambda verdict: None,
) -> tuple[PortRun, ...]:
    """Run every port (its spec and the command that starts it) over all cases, the ports side by side.

    `timeout` is in seconds, for one answer. A port with many cases is run as up to `jobs` processes, which share them.
    `on_verdict` is called from the ports' threads as verdicts come in.
    """
    asked = tuple(cases)
    workers = max(1, min(jobs, len(asked) // CASES_OF_A_PROCESS))
    family = Family()
    start = partial(PortProcess, device=device, mode=mode, timeout=timeout, family=family)
    with ThreadPoolExecutor(max_workers=max(1, len(commands) * workers)) as pool:
        runs: list[list[Part]] = []
        for spec, command in commands.items():
            left, parts = _groups(asked), list[Part]()
            for _ in range(workers):
                taken: list[int] = []
                how = spec, partial(start, command), _drained(left, taken), seed, timeout, on_verdict
                parts.append((taken, pool.submit(run_port, *how)))
            runs.append(parts)
        try:
            return tuple(_joined([(taken, part.result()) for taken, part in parts]) for parts in runs)
        except BaseException:  # an interrupt, above all: the pool waits for its threads, and they for their ports
            family.end()
            raise


def _groups(cases: tuple[Case, ...]) -> deque[Group]:
    """Neighbours whose ids differ in their names alone; the last ones, which take a compiler longest, come first."""
    groups = [tuple(group) for _, group in groupby(enumerate(cases), lambda item: item[1].id.rpartition("/")[0])]
    return deque(reversed(groups))


def _drained(groups: deque[Group], taken: list[int]) -> Iterator[Case]:
    """The cases of one group after another, until no other process has left one; their places are `taken`."""
    while groups:
        with suppress(IndexError):  # another process was faster
            for place, case in groups.popleft():
                taken.append(place)
                yield case


def _joined(parts: list[tuple[list[int], PortRun]]) -> PortRun:
    """One port's parts as one run in the order of the cases; it failed to start if any of them did."""
    first = parts[0][1]
    for _, part in parts:
        if part.failure:
            return PortRun(first.spec, None, (), part.failure)
    placed = [pair for taken, part in parts for pair in zip(taken, part.verdicts, strict=True)]
    return PortRun(first.spec, first.hello, tuple(verdict for _, verdict in sorted(placed, key=lambda pair: pair[0])))


def run_port(
    spec: str,
    start: Callable[[], PortProcess],
    cases: Iterable[Case],
    seed: int,
    timeout: float,
    on_verdict: Callable[[Verdict], None],
) -> PortRun:
    """Ask one port every case it claims to support; restart it where it fails."""
    try:
        process = start()
    except PortFailure as failure:
        return PortRun(spec, None, (), str(failure))
    hello = process.hello
    verdicts, failures_in_a_row = [], 0
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        for id_, case in enumerate(cases):
            reason = unsupported(case, hello)
            if reason:
                verdict = Verdict(spec, case, "skip", message=reason)
            elif failures_in_a_row == STARTS_IN_A_ROW:
                verdict = Verdict(spec, case, "error", message=NOT_ASKED)
            else:
                try:
                    process = process or start()
                    verdict = ask(process, spec, id_, case, seed, Path(folder), timeout)
                    failures_in_a_row = 0
                except PortFailure as failure:
                    verdict = Verdict(spec, case, "error", message=f"the port {failure}")
                    failures_in_a_row += 1
                    if process:
                        process.close(politely=False)
                    process = None
            verdicts.append(verdict)
            on_verdict(verdict)
    if process:
        process.close()
    return PortRun(spec, hello, tuple(verdicts))


def ask(process: PortProcess, spec: str, id_: int, case: Case, seed: int, folder: Path, timeout: float) -> Verdict:
    """One case from inputs to verdict. Raises `PortFailure` if the process can no longer be used."""
    return as_expected(judge(process, spec, id_, golden(case, seed), folder, timeout), process.hello.expected)


def judge(process: PortProcess, spec: str, id_: int, expected: Golden, folder: Path, timeout: float) -> Verdict:
    """What a port makes of a golden's inputs, whatever it says of itself. Raises as `ask` does."""
    case = expected.case
    try:
        answer = exchange(process, id_, case, expected.inputs, folder, timeout)
    except NoAnswer as none:
        return Verdict(spec, case, none.status, message=str(none), detail=none.detail)
    verdict = compare(spec, expected, answer.outputs, asked_of(case, process.hello))
    return unless_overwritten(verdict, answer.overwrote)


def unless_overwritten(verdict: Verdict, overwrote: tuple[str, ...] | None) -> Verdict:
    """The verdict where no input was overwritten; a failure that says which were, whatever the outputs are."""
    if not overwrote or verdict.status == "error":
        return verdict
    return replace(verdict, status="fail", message=f"overwrites its input{'s' * (len(overwrote) > 1)} {', '.join(overwrote)}")


def as_expected(verdict: Verdict, expected: dict[str, str]) -> Verdict:
    """The verdict in the light of what the port says will fail: it is expected to, and must not pass."""
    reason = next((reason for glob, reason in expected.items() if fnmatchcase(verdict.case.id, glob)), None)
    if reason is None or verdict.status == "skip":
        return verdict
    if verdict.status == "pass":
        return replace(verdict, status="fail", message=f"passes, though it is expected to fail: {reason}")
    return replace(verdict, status="expected", message=reason)


class NoAnswer(Exception):
    """A port in good health has no outputs for a case: it skips it, or says what went wrong."""

    def __init__(self, status: Literal["skip", "error"], message: str, detail: str = "") -> None:
        super().__init__(message)
        self.status: Literal["skip", "error"] = status
        self.detail = detail


def asked_of(case: Case, hello: Hello) -> tuple[str, ...]:
    """The outputs that a port is asked for."""
    return tuple(case.outputs) if hello.gradients else tuple(case.outputs)[:1]


def exchange(process: PortProcess, id_: int, case: Case, given: dict[str, Array], folder: Path, timeout: float) -> Answer:
    """What a port returns for a case on the inputs `given`, which need not be the case's own.

    Raises `NoAnswer` where it gives no outputs, `PortFailure` where the process can no longer be used.
    """
    inputs, outputs = folder / "inputs.safetensors", folder / "outputs.safetensors"
    write_tensors(inputs, given)
    outputs.unlink(missing_ok=True)
    call = Call(
        id=id_,
        case=case.id,
        op=case.op,
        dtype=case.dtype,
        order=case.dialect.order,
        weight_offset=case.weight_offset or 0,
        eps=case.eps,
        layout=case.layout,
        asked=asked_of(case, process.hello),
        inputs=str(inputs),
        outputs=str(outputs),
        settings=case.settings,
        taps=process.hello.taps and case.op in TAPPED,
    )
    answer = process.ask(id_, encode("case", **asdict(call)), timeout)
    match answer["type"]:
        case "done":
            try:
                return Answer(read_tensors(outputs), read_overwrote(answer))
            except (TensorFileError, ProtocolError) as error:
                raise NoAnswer("error", f"the port said done, but {error}") from None
        case "skip":
            raise NoAnswer("skip", str(answer.get("reason", "no reason given")))
        case "error":
            raise NoAnswer("error", str(answer.get("message", "no message given")), str(answer.get("detail", "")))
        case other:
            raise PortFailure(f"answered a case with {other!r}")


def unsupported(case: Case, hello: Hello) -> str:
    """Why a port need not answer a case, by its own word; empty if it must."""
    if case.op not in hello.ops:
        return f"no op {case.op}"
    if case.dtype not in hello.dtypes:
        return f"no dtype {case.dtype}"
    if case.dialect.order not in ("either_order", *hello.orders):
        return f"no order {case.dialect.order}"
    if case.weight_offset is not None and case.weight_offset not in hello.weight_offsets:
        return f"no weight offset {case.weight_offset}"
    return ""
