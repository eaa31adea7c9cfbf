"""The report as JUnit's XML, which continuous integration reads: a test suite for every port, a test case for every case."""

import re
from xml.etree import ElementTree as xml

from conformance.judging.compare import Status
from conformance.report import words
from conformance.report.report import CaseEntry, PortEntry, Report, total

ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 has no way to write these


def as_junit(report: Report) -> str:
    """One XML document. A failure's text is its diagnosis; what the port expects is skipped, as what is skipped is."""
    counts = report.counts()
    counts["error"] = counts.get("error", 0) + sum(bool(port.failure) for port in report.ports)
    counted = _counted(counts, report)
    del counted["skipped"]  # which the schema has for a suite alone
    root = _element(None, "testsuites", name="conformance", **counted)
    for port in report.ports:
        root.append(_suite(report, port))
    xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _suite(report: Report, port: PortEntry) -> xml.Element:
    counts = total(cell for cell in report.matrix if cell.port == port.port)
    if port.failure:
        counts["error"] = counts.get("error", 0) + 1
    suite = _element(None, "testsuite", name=port.port, **_counted(counts, report))
    properties = _element(suite, "properties")
    for name, value in _properties(report, port).items():
        _element(properties, "property", name=name, value=value)
    if port.failure:
        case = _element(suite, "testcase", classname=port.port, name="could not be run", time="0")
        _element(case, "error", port.failure, message=port.failure, type="error")
    said = _causes(report, port)
    for entry in report.verdicts:
        if entry.port == port.port:
            suite.append(_case(report, entry, said.get(entry.case, "")))
    return suite


def _counted(counts: dict[Status, int], report: Report) -> dict[str, str]:
    return {
        "tests": str(sum(counts.values())),
        "failures": str(counts.get("fail", 0)),
        "errors": str(counts.get("error", 0)),
        "skipped": str(counts.get("skip", 0) + counts.get("expected", 0)),
        "time": f"{report.seconds:.3f}",
    }


def _properties(report: Report, port: PortEntry) -> dict[str, str]:
    settings = report.settings
    properties = {
        "conformance": report.conformance,
        "seed": str(settings.seed),
        "device": settings.device,
        "mode": words.mode(report, port),
    }
    properties |= {"ranks": str(settings.ranks)} if settings.ranks > 1 else {}
    return properties | (port.hello.versions if port.hello else {})


def _causes(report: Report, port: PortEntry) -> dict[str, str]:
    """Case to what is said of its causes."""
    said: dict[str, str] = {}
    for cause in report.causes:
        if cause.port == port.port:
            paragraph = words.paragraph(report, cause)
            for case in cause.cases:
                said[case] = f"{said[case]}\n\n{paragraph}" if case in said else paragraph
    return said


def _case(report: Report, entry: CaseEntry, cause: str) -> xml.Element:
    group, _, _ = entry.case.rpartition("/")
    case = _element(None, "testcase", classname=f"{entry.port}.{group.replace('/', '.')}", name=entry.case, time="0")
    match entry.status:
        case "skip":
            _element(case, "skipped", message=entry.message)
        case "expected":
            _element(case, "skipped", message=f"as expected: {entry.message}")
        case "fail" | "error":
            off = [f"{output.output} {words.ratio(output.ratio)}" for output in entry.outputs if not output.passes]
            message = entry.message or f"off by, in tolerances: {', '.join(off) or entry.parts_at}"
            again = f"this case: {report.command(entry.port, entry.case)}"
            text = "\n\n".join(part for part in (message, cause, entry.detail.strip(), again) if part)
            name = "failure" if entry.status == "fail" else "error"
            _element(case, name, text, message=message, type=name)
        case "pass":
            pass
    return case


def _element(parent: xml.Element | None, tag: str, text: str = "", /, **attributes: str) -> xml.Element:
    legal = {key: ILLEGAL.sub("\ufffd", value) for key, value in attributes.items()}
    element = xml.Element(tag, legal) if parent is None else xml.SubElement(parent, tag, legal)
    element.text = ILLEGAL.sub("\ufffd", text) or None
    return element
