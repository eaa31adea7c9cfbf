"""A port as several processes, one a rank: started together, asked together, ended together.

They find each other as under torchrun, by the variables RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. What they say to each other, and by what engine, is their own affair.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from conformance.port.launch import Launch
from conformance.port.process import Aftermath, Family, PortFailure, PortProcess, Silence
from conformance.port.protocol import decode, encode, read_text

T = TypeVar("T")

GRACE = 2.0  # seconds that ranks are given when another is in trouble: it may leave them waiting for ever


def of_rank(path: Path, rank: int, ranks: int) -> Path:
    """The file of one rank, beside the one that would be there for all; that one itself where there is one rank."""
    return path if ranks == 1 else path.with_suffix(f".{rank}{path.suffix}")


class PortGroup:
    """A running port of several ranks. What fails on one ends them all; the message names it.

    Raises `PortFailure` where one cannot be started, or does not answer hello in time.
    """

    def __init__(self, launch: Launch, family: Family | None = None) -> None:
        self._launch = launch
        self._family = family or Family()
        self._own = Family()
        self._processes: dict[int, PortProcess] = {}
        self._family.adopt(self)
        try:
            self._start()
        except BaseException:
            self.close(politely=False)
            raise
        self.hello = self._processes[0].hello

    def ask(self, id_: int, request: str, timeout: float) -> dict[str, Any]:
        """Ask every rank, each with its own files, and return one answer; an error or a skip of one rank is all's.

        Raises `PortFailure`, and `Aftermath` where an earlier request is to blame; the group is of no use after either.
        """
        if not self._processes:  # an error on one rank had left others waiting
            self._start()
        call, ranks = decode(request), self._launch.ranks
        asks = [
            partial(process.ask, id_, _asked_of_rank(call, rank, ranks), timeout)
            for rank, process in sorted(self._processes.items())
        ]
        answers = self._together(asks, _is_trouble)
        if len(answers) < ranks:
            self._end(politely=False)
        return _joined(id_, answers, ranks)

    def close(self, *, politely: bool = True) -> None:
        """End all processes; say bye first, unless they are known not to listen."""
        self._end(politely=politely)
        self._family.release(self)

    def kill(self) -> None:
        """End all at once, with whatever they have started."""
        self._own.end()

    def _start(self) -> None:
        """Start all, and greet all at once: each may wait for the others before it answers."""
        self._own = Family()
        self._family.adopt(self)  # anew: where the run is over, what is started now ends at once
        launch, variables = self._launch, _variables(self._launch.ranks)

        def begin(rank: int) -> None:
            own = variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self._processes[rank] = PortProcess(launch, self._own, own)

        self._together([partial(begin, rank) for rank in range(launch.ranks)], words="on rank {}: {}")

    def _end(self, *, politely: bool) -> None:
        for process in self._processes.values():
            process.close(politely=politely)
        self._processes = {}

    def _together(
        self,
        tasks: Sequence[Callable[[], T]],
        is_trouble: Callable[[T], bool] = lambda result: False,
        words: str = "on rank {} {}",
    ) -> dict[int, T]:
        """What the tasks return, one for each rank, in the order in which they end.

        Where one fails or returns trouble the others have a moment more; then all processes are ended, and those ranks are
        left out. Raises the `PortFailure` that is to blame, with its rank in these words.
        """
        with ThreadPoolExecutor(len(tasks)) as pool:
            futures = {pool.submit(task): rank for rank, task in enumerate(tasks)}
            ended: list[Future[T]] = []
            until = float("inf")
            while (pending := set(futures) - set(ended)) and time.monotonic() < until:
                left = None if until == float("inf") else max(until - time.monotonic(), 0.0)
                done = wait(pending, left, FIRST_COMPLETED).done
                ended += sorted(done, key=futures.__getitem__)
                if until == float("inf") and any(each.exception() or is_trouble(each.result()) for each in done):
                    until = time.monotonic() + GRACE
            if pending:
                self._own.end()
        failures = {futures[each]: error for each in ended if (error := each.exception())}
        if failures:
            raise _blamed(failures, words)
        return {futures[each]: each.result() for each in ended}


def _variables(ranks: int) -> dict[str, str]:
    """What all ranks are told. The port is one that is free now, unless the user has chosen one."""
    said = os.environ
    return {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": said.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": said.get("MASTER_PORT") or str(_free_port()),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _asked_of_rank(call: dict[str, Any], rank: int, ranks: int) -> str:
    """A request as one rank is asked it."""
    own = {name: str(of_rank(Path(call[name]), rank, ranks)) for name in ("inputs", "outputs")} | {"rank": rank}
    fields = {name: value for name, value in call.items() if name != "type"} | own
    return encode(call["type"], **fields)


def _is_trouble(answer: dict[str, Any]) -> bool:
    return answer["type"] != "done"


def _blamed(failures: dict[int, BaseException], words: str) -> BaseException:
    """The failure that explains the others, with its rank: first what was over before the request, last mere silence."""
    for error in failures.values():
        if not isinstance(error, PortFailure):
            return error
    for kind in (Aftermath, PortFailure):
        for rank, error in failures.items():
            if type(error) is kind:
                return kind(words.format(rank, error))
    first, *others = sorted(failures)  # any of them may be what the others wait for
    nor = "".join(f", nor on rank {rank}{_where(failures[rank])}" for rank in others)
    return Silence(f"{words.format(first, failures[first])}{_where(failures[first])}{nor}")


def _where(silence: BaseException) -> str:
    return silence.where if isinstance(silence, Silence) else ""


def _joined(id_: int, answers: dict[int, dict[str, Any]], ranks: int) -> dict[str, Any]:
    """One answer for all ranks; `answers` are in the order in which they came, without those that never did."""
    trouble = [(rank, each) for rank, each in answers.items() if _is_trouble(each)]
    if not trouble:
        said = [each.get("overwrote") for each in answers.values()]
        known = [each for each in said if isinstance(each, list)]
        overwrote = sorted({name for each in known for name in each}) if len(known) == ranks else None
        return {"type": "done", "id": id_, "overwrote": overwrote, "collectives": answers[0].get("collectives")}
    if len(trouble) == ranks and all(each["type"] == "skip" for _, each in trouble):
        return trouble[0][1]
    rank, first = next(((rank, each) for rank, each in trouble if each["type"] == "error"), trouble[0])
    if first["type"] == "skip":
        said = f"skips what other ranks do not: {read_text(first, 'reason')}"
    else:
        said = read_text(first, "message") or "no message given"
    return {"type": "error", "id": id_, "message": f"rank {rank}: {said}", "detail": read_text(first, "detail")}
