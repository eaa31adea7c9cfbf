"""A port that is asked one case after another: started, started again where it fails, given up, and tidied up after."""

import os
import tempfile
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from conformance.numbers.tensors import TensorFileError, as_bytes, read_tensors
from conformance.ops.table import OPS
from conformance.port.group import PortGroup, of_rank
from conformance.port.in_process import PortInProcess
from conformance.port.launch import Launch
from conformance.port.parts import PartError, cut, join, whole
from conformance.port.process import Aftermath, Family, PortFailure, PortProcess, RunningPort
from conformance.port.protocol import Answer, Call, Hello, ProtocolError, Repeated, encode, excerpt, printable, read_text
from conformance.question.answer import malformed
from conformance.question.case import Case, split_over_ranks
from conformance.question.collectives import Collectives

Array = np.ndarray

OUTPUTS_LIMIT = 1 << 29  # bytes of the outputs' file: no case of the kit's own comes near
STARTS_IN_A_ROW = 3  # a port that dies or hangs this often with no answer in between is not started again
NOT_ASKED = f"not asked: the port failed {STARTS_IN_A_ROW} times in a row"


class NoAnswer(Exception):
    """A port has no outputs for a case: it skips it, or something went wrong."""

    def __init__(self, status: Literal["skip", "error"], message: str, detail: str = "") -> None:
        super().__init__(message)
        self.status: Literal["skip", "error"] = status
        self.detail = detail


def asked_of(case: Case, hello: Hello) -> tuple[str, ...]:
    """The outputs that a port is asked for."""
    return tuple(case.outputs) if hello.gradients else case.made


def outputs_limit(case: Case) -> int:
    """The most bytes that a case's outputs may take as a file: twice what they need in float64, for a case that is so large."""
    elements = sum(prod(case.output_shape(name)) for name in case.outputs)
    return max(OUTPUTS_LIMIT, 2 * 8 * elements)


def read_overwrote(message: dict[str, Any]) -> tuple[str, ...] | None:
    """The inputs that a port says it has overwritten, if it says. Raises `ProtocolError` unless they are a list of strings."""
    value = message.get("overwrote")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProtocolError(f"field 'overwrote' is {excerpt(value)}; it must be a list of strings")
    return tuple(printable(name) for name in value)


def read_collectives(answer: dict[str, Any]) -> Collectives | None:
    """The collectives that a port says it has run, if it says. Raises `ProtocolError` unless they are two numbers."""
    told = answer.get("collectives")
    if told is None:
        return None
    numbers: list[Any] = [told.get(name) for name in ("count", "bytes")] if isinstance(told, dict) else []
    if not numbers or not all(type(each) is int and each >= 0 for each in numbers):
        raise ProtocolError(f"field 'collectives' is {excerpt(told)}; it must be a count and bytes, whole numbers")
    return Collectives(*numbers)


def call_of(
    case: Case,
    asked: tuple[str, ...],
    given: Collection[str],
    *,
    id_: int = 0,
    inputs: str = "",
    outputs: str = "",
    taps: bool,
    ranks: int = 1,
) -> Call:
    """A case as a port is asked it: what is asked, the names of what is given, and the paths of the files with both.

    `taps`: whether the port exports intermediates.
    """
    op, split = OPS[case.op], split_over_ranks(case.layout)
    return Call(
        id=id_,
        case=case.id,
        op=case.op,
        dtype=case.dtype,
        order=case.dialect.order,
        weight_offset=case.weight_offset or 0,
        eps=case.eps,
        layout="contiguous" if split else case.layout,
        asked=asked,
        gradients=tuple(name for name in asked if name not in case.made),
        cotangents=tuple(name for name in op.cotangents if name in given),
        inputs=inputs,
        outputs=outputs,
        settings=case.settings,
        taps=taps and op.taps,
        ranks=ranks,
        split=split or "",
        shape=case.shape if ranks > 1 else (),
    )


def start(launch: Launch, family: Family | None) -> RunningPort:
    """A port that has said hello, in this process, in one of its own or in several, of that family. Raises `PortFailure`."""
    if launch.ranks > 1:
        return PortGroup(launch, family)
    return PortInProcess(launch) if launch.in_process else PortProcess(launch, family)


class Session:
    """One port in one mode: started when it is first asked, again where it failed, given up after `patience` failures in a row.

    `aftermath` says what the port did after its answer and before it took in the case asked last, such as to exit; empty if
    nothing. It costs that answer, and not the case, of which another process is asked.
    """

    def __init__(self, launch: Launch, family: Family | None = None, patience: float = STARTS_IN_A_ROW) -> None:
        self.launch, self._family, self._patience = launch, family, patience
        self._process: RunningPort | None = None
        self._failures = self._asked = 0
        self._folders: list[tempfile.TemporaryDirectory[str]] = []
        self.aftermath = ""

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._end(politely=True)
        for folder in self._folders:  # a port that was still writing may have made it again
            _remove(folder)

    @cached_property
    def hello(self) -> Hello:
        """What the port first said of itself. Raises `PortFailure` where it cannot be started."""
        return self._running().hello

    @property
    def given_up(self) -> bool:
        """Whether the port has failed so often that it is asked no more."""
        return self._failures >= self._patience

    def ask(self, case: Case, given: dict[str, Array]) -> Answer:
        """The port's answer, well formed. Raises `NoAnswer` where there is none, or none to judge."""
        answer = self.exchange(case, given)
        problem = malformed(case, answer.outputs, asked_of(case, self.hello))
        if problem:
            raise NoAnswer("error", problem)
        return answer

    def exchange(self, case: Case, given: dict[str, Array]) -> Answer:
        """What the port returns for a case on the inputs `given`, which need not be the case's own.

        Raises `NoAnswer` where it gives no outputs.
        """
        with self._folder() as folder:
            asked, ranks = asked_of(case, self.hello), self.launch.ranks
            call = self._call(case, asked, given, folder)
            answer, parts = self._put(encode("case", **call.fields), call, cut(case, given, ranks), outputs_limit(case))
            if ranks == 1:
                return Answer(parts[0], read_overwrote(answer))
            try:
                outputs, on_each = join(case, parts, asked), whole(case, parts, asked)
                return Answer(outputs, read_overwrote(answer), on_each, read_collectives(answer))
            except PartError as error:
                raise NoAnswer("error", str(error)) from None

    def repeat(self, case: Case, sets: Sequence[dict[str, Array]], asked: tuple[str, ...], **how: Any) -> Repeated:
        """How long calls on the `sets` of inputs take, in turn, and the outputs of one; `how` are fields of `Repeat`.

        Raises `NoAnswer` where the port cannot be asked so. It must be one in Python.
        """
        with self._folder() as folder:
            call = self._call(case, asked, sets[0], folder)
            given = {f"{number}.{name}": array for number, inputs in enumerate(sets) for name, array in inputs.items()}
            request = encode("time", **call.fields, sets=len(sets), **how)
            answer, [outputs] = self._put(request, call, [given], outputs_limit(case))
            told = {name: answer[name] for name in Repeated.__dataclass_fields__ if name != "outputs"}
            return Repeated(**told, outputs=outputs)

    @contextmanager
    def _folder(self) -> Generator[Path]:
        """A folder for one question: whatever the port does to it, the next one is as it should be. Raises `NoAnswer`."""
        if self.given_up:
            raise NoAnswer("error", NOT_ASKED)
        folder = tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True)
        self._folders.append(folder)
        try:
            yield Path(folder.name)
        except PortFailure as failure:
            self._failures += 1
            self._end()
            raise NoAnswer("error", f"the port {failure}") from None
        except (TensorFileError, ProtocolError) as error:
            said = str(error).replace(f"{folder.name}{os.sep}", "")  # where it lay is of no use, and is another in every case
            raise NoAnswer("error", f"the port said done, but {said}") from None
        finally:
            _remove(folder)

    def _call(self, case: Case, asked: tuple[str, ...], given: Collection[str], folder: Path) -> Call:
        paths = {name: str(folder / f"{name}.safetensors") for name in ("inputs", "outputs")}
        return call_of(case, asked, given, id_=self._asked, **paths, taps=self.hello.taps, ranks=self.launch.ranks)

    def _put(
        self, request: str, call: Call, given: Sequence[dict[str, Array]], limit: int
    ) -> tuple[dict[str, Any], list[dict[str, Array]]]:
        """The answer `done` to a request about these tensors, and what is in the file of outputs, of so many bytes at most.

        Of each rank one set is given, and one returned.
        """
        ranks = len(given)
        for rank, part in enumerate(given):
            of_rank(Path(call.inputs), rank, ranks).write_bytes(as_bytes(part))
        answer = self._answer(request)
        self._failures = 0
        if answer["type"] != "done":
            key = "reason" if answer["type"] == "skip" else "message"
            raise NoAnswer(answer["type"], read_text(answer, key) or f"no {key} given", read_text(answer, "detail"))
        return answer, [read_tensors(of_rank(Path(call.outputs), rank, ranks), limit) for rank in range(ranks)]

    def _answer(self, request: str) -> dict[str, Any]:
        """The answer of the running process or, where that one failed before it took the question in, of another."""
        question = self._asked, request, self.launch.timeout
        self._asked += 1
        self.aftermath = ""
        try:
            return self._running().ask(*question)
        except Aftermath as failure:
            self._end()
            answer = self._running().ask(*question)
            self.aftermath = str(failure)
            return answer

    def _running(self) -> RunningPort:
        self._process = self._process or start(self.launch, self._family)
        return self._process

    def _end(self, *, politely: bool = False) -> None:
        if self._process:
            self._process.close(politely=politely)
        self._process = None


def _remove(folder: tempfile.TemporaryDirectory[str]) -> None:
    """Remove a folder, or whatever the port has put in its place."""
    with suppress(RecursionError):  # folders in folders, thousands deep
        folder.cleanup()
    with suppress(OSError):
        os.unlink(folder.name)
