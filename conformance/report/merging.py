"""Several reports as one: the shards of a run, or runs of different ports."""

from collections.abc import Mapping
from dataclasses import replace

from conformance.numbers.rounding import DTYPES
from conformance.ops.table import OPS
from conformance.report.building import assemble
from conformance.report.causes import Explained
from conformance.report.report import CaseEntry, PortEntry, Report

SAME = {
    "seed": "seed",
    "device": "device",
    "mode": "mode",
    "cases": "cases file",
    "asked": "number of cases",
    "digest": "cases",
}


class MergeError(ValueError):
    """Reports that do not belong together, or of which some are missing; the message names them."""


def merge(reports: Mapping[str, Report]) -> Report:
    """One report, as if one machine had done it all; `reports` maps a file's name to what it holds. Raises `MergeError`."""
    _check_settings(reports)
    _check_shards(reports)
    _check_overlaps(reports)
    ports: dict[str, PortEntry] = {}
    for name, report in reports.items():
        for port in report.ports:
            ports[port.port] = _joined(ports[port.port], port, name) if port.port in ports else port
    verdicts = [verdict for report in reports.values() for verdict in report.verdicts]
    places = {port: place for place, port in enumerate(ports)}
    verdicts.sort(key=lambda each: (places[each.port], list(OPS).index(each.op), DTYPES.index(each.dtype)))
    _check_count(next(iter(reports.values())).settings.asked, ports, verdicts)
    made: list[Explained] = [
        (cause.port, cause.what, cause.evidence, cause.cases)
        for report in reports.values()
        for cause in report.causes
        if cause.evidence
    ]
    settings = replace(next(iter(reports.values())).settings, shard=1, shards=1)
    return assemble(settings, sum(report.seconds for report in reports.values()), list(ports.values()), verdicts, made)


def _check_settings(reports: Mapping[str, Report]) -> None:
    """All are of one version, and ask the same in the same way."""
    (first, one), *others = reports.items()
    for name, other in others:
        if other.conformance != one.conformance:
            raise MergeError(f"{name} is by version {other.conformance} of the kit, {first} by {one.conformance}")
        for field, words in SAME.items():
            mine, its = getattr(one.settings, field), getattr(other.settings, field)
            if mine != its:
                said = "" if field == "digest" else f": {its!r}, not {mine!r}"
                raise MergeError(f"{name} has another {words} than {first}{said}")


def _check_shards(reports: Mapping[str, Report]) -> None:
    """Every port has all of its shards."""
    found: dict[str, dict[int, str]] = {}
    counts: dict[str, tuple[int, str]] = {}
    for name, report in reports.items():
        number, count = report.settings.shard, report.settings.shards
        for port in report.ports:
            others, first = counts.setdefault(port.port, (count, name))
            if others != count:
                raise MergeError(f"{name} is a shard of {count} of {port.port}, {first} of {others}")
            mine = found.setdefault(port.port, {})
            if number in mine:
                raise MergeError(f"{mine[number]} and {name} are both shard {number} of {count} of {port.port}")
            mine[number] = name
    for port, mine in found.items():
        count, _ = counts[port]
        missing = [str(number) for number in range(1, count + 1) if number not in mine]
        if missing:
            raise MergeError(f"of {port}, shard {', '.join(missing)} of {count} is missing")


def _check_overlaps(reports: Mapping[str, Report]) -> None:
    """No case of a port is judged twice."""
    judged: dict[tuple[str, str], str] = {}
    for name, report in reports.items():
        for verdict in report.verdicts:
            first = judged.setdefault((verdict.port, verdict.case), name)
            if first != name:
                raise MergeError(f"{first} and {name} both judge {verdict.case} of {verdict.port}")


def _check_count(asked: int, ports: Mapping[str, PortEntry], verdicts: list[CaseEntry]) -> None:
    """Every port that could be run has a verdict for every case."""
    for name, port in ports.items():
        count = sum(verdict.port == name for verdict in verdicts)
        if count != asked and not port.failure:
            raise MergeError(f"{name} has verdicts for {count} of the {asked} cases that it was asked")


def _joined(one: PortEntry, other: PortEntry, name: str) -> PortEntry:
    """One port as two machines have it: it could not be run if either could not run it."""
    if one.hello and other.hello and one.hello != other.hello:
        raise MergeError(f"{name}: {other.port} says other things of itself there: {other.hello} is not {one.hello}")
    failures = dict.fromkeys(failure for failure in (one.failure, other.failure) if failure)
    return replace(one, hello=one.hello or other.hello, failure="; ".join(failures))
