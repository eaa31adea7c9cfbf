"""The report as JUnit XML, Markdown and HTML: whole, escaped, and rendered from the data alone."""

import json
import re
from dataclasses import replace
from functools import cache
from itertools import pairwise
from xml.etree import ElementTree as xml

import numpy as np
import pytest
from markdown_it import MarkdownIt

from conformance.judging.compare import Verdict, compare
from conformance.judging.simulation import STYLES, play
from conformance.mistakes import MISTAKES
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.report.building import build
from conformance.report.figures import CELL, heat_map
from conformance.report.html import as_html
from conformance.report.junit import as_junit
from conformance.report.machine import as_json, parse
from conformance.report.markdown import LIMIT, as_markdown
from conformance.report.report import Report, Settings
from conformance.running.runner import PortRun
from tests.runner.test_report import HELLO, LARGE, SMALL, judged, one_nan, report, sevens, unjudged

EVIL = "<script>alert(1)</script>\"'&|`*_[x](y)\x00\x1b\n```\n<b>bold</b>"
BLOCK = "pre_ln_block/llama/float32/random"
BY_ID = {mistake.id: mistake for mistake in MISTAKES}


@cache
def verdicts() -> tuple[Verdict, ...]:
    """A known mistake in a block and its stages, NaN, an error, skips."""
    (block,) = select(BLOCK)
    answer = play(block, 0, STYLES[0], BY_ID["position_of_query_off_by_one"])
    return (
        judged(SMALL, one_nan),
        judged("rms_norm/either_order/float32/spike"),
        judged("layer_norm/either_order/float64/random", sevens),
        unjudged(LARGE, "error"),
        unjudged("rms_norm/either_order/float32/rank_4", "skip"),
        replace(judged("rms_norm/either_order/float32/width_7", sevens), status="expected"),
        compare("port", golden(block), answer, tuple(block.outputs)),
    )


@cache
def everything(port: str = "port", message: str = "on Sundays") -> Report:
    """A report with all there is, of a port and of one that did not start, and what they say."""
    said = tuple(
        replace(each, port=port, message="" if each.status in ("pass", "fail") else message, detail=f'  File "{message}"')
        for each in verdicts()
    )
    hello = replace(HELLO, name=port, versions={port: message})
    runs = [PortRun(port, hello, said, argument=f"--exec '{port}'"), PortRun("none", None, (), message)]
    return build(runs, Settings(0, "mars", "eager", asked=len(said)), 1.25)


@pytest.mark.parametrize("render", [as_junit, as_markdown, as_html])
def test_a_page_is_made_of_what_the_file_holds(render):
    whole = everything()
    assert render(parse(json.loads(as_json(whole)))) == render(whole)


# JUnit


COUNTED = {"name", "tests", "failures", "errors", "time"}
# What an element must have, what it may have, and what stands in it: https://github.com/jenkinsci/xunit-plugin, junit-10.xsd.
JUNIT = {
    "testsuites": (set(), COUNTED, {"testsuite"}),
    "testsuite": (COUNTED - {"time"}, COUNTED | {"skipped"}, {"properties", "testcase"}),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, {"name", "value"}, set()),
    "testcase": ({"name", "classname"}, {"name", "classname", "time"}, {"skipped", "failure", "error"}),
    "skipped": (set(), {"message"}, set()),
    "failure": (set(), {"message", "type"}, set()),
    "error": (set(), {"message", "type"}, set()),
}


def suites(of: Report) -> xml.Element:
    return xml.fromstring(as_junit(of))


@pytest.mark.parametrize("said", ["on Sundays", EVIL], ids=["plain", "evil"])
def test_junit_is_as_its_schema_has_it(said):
    for element in suites(everything(said, said)).iter():
        required, allowed, inner = JUNIT[element.tag]
        assert required <= set(element.attrib) <= allowed
        assert {child.tag for child in element} <= inner
        assert re.fullmatch(r"\d{1,9}(\.\d{3})?", element.get("time", "0"))


def test_junit_has_a_case_for_every_case():
    root = suites(everything())
    assert root.tag == "testsuites"
    for element in (root, *root):
        cases = list(element.iter("testcase"))
        found = {name: len(list(element.iter(tag))) for name, tag in (("failures", "failure"), ("errors", "error"))}
        found |= {"tests": len(cases)} | ({"skipped": len(list(element.iter("skipped")))} if element is not root else {})
        assert {name: int(element.get(name)) for name in found} == found
    port, none = root
    assert [case.get("name") for case in port.iter("testcase")] == [entry.case for entry in everything().verdicts]
    assert (none.get("name"), none.get("errors"), none.find("testcase/error").get("message")) == ("none", "1", "on Sundays")
    assert {(each.tag, tuple(each.attrib)) for each in port.findall("testcase/*")} == {
        ("failure", ("message", "type")),
        ("error", ("message", "type")),
        ("skipped", ("message",)),
    }


def test_a_failure_carries_its_diagnosis():
    (failure,) = suites(everything()).findall(f".//testcase[@name='{BLOCK}']/failure")
    assert "position_of_query_off_by_one explains " in failure.text
    assert "parts at" in failure.text
    assert failure.text.endswith(everything().command("port", BLOCK))
    messages = [each.get("message") for each in suites(everything()).iter("skipped")]
    assert messages == ["on Sundays", "as expected: on Sundays"]


def test_junit_holds_what_xml_cannot():
    root = suites(everything(EVIL, EVIL))
    said = EVIL.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    assert root[0].get("name") == said
    assert said in root.find(".//error").get("message")


# Markdown


def html_of(page: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(page)


def test_markdown_has_the_matrix_the_causes_and_the_commands():
    rendered = html_of(as_markdown(everything()))
    assert "<h2>❌ Does not conform" in rendered or "<h2>❌ A port was not judged" in rendered
    assert len(re.findall("<tr>", rendered)) == 1 + 3
    assert rendered.count("<h3>") == len(everything().causes)
    assert all(cause.command in rendered for cause in everything().causes)
    assert as_markdown(report(judged("rms_norm/either_order/float32/spike"))).startswith(
        "## ✅ Conforms\n\n1 passed in 1.2 s\n"
    )


def test_markdown_escapes_what_it_is_told():
    rendered = html_of(as_markdown(everything(EVIL, EVIL)))
    assert "<script" not in rendered
    assert "<a " not in rendered
    assert "<em>" not in rendered
    assert "<b>" not in rendered
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in rendered
    assert len(re.findall("<tr>", rendered)) == 1 + 3
    assert rendered.count("<h3>") == len(everything(EVIL, EVIL).causes)


def test_markdown_is_no_longer_than_a_job_page_takes():
    cases = [case.id for case in select("*", op="rms_norm")]
    many = report(*(unjudged(case, "error", f"{case} {'x' * 30_000}") for case in cases))
    page = as_markdown(many)
    assert LIMIT / 2 < len(page.encode()) < 2**20
    assert re.search(r"… and \d+ more causes\.\n$", page)


# HTML


def parsed(page: str):
    html5lib = pytest.importorskip("html5lib")
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)
    for element in tree.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]  # SVG's has its namespace before it
    return tree


def test_html_is_well_formed_and_needs_no_network():
    page = as_html(everything())
    tree = parsed(page)
    for element in tree.iter():
        if isinstance(element.tag, str):
            assert element.tag not in ("iframe", "object", "embed", "img", "audio", "video", "base", "form")
            for name in ("src", "href", "action", "srcset", "data", "poster", "background"):
                value = element.get(name)
                assert value is None or value.startswith("#") or value == "data:,", (element.tag, value)
    assert "://" not in page.replace("http://www.w3.org", "")
    assert "@import" not in page
    assert "url(" not in page


def test_html_escapes_whatever_it_is_told():
    page = as_html(everything(EVIL, EVIL))
    plain = as_html(everything())
    assert len(re.findall("<script", page)) == len(re.findall("<script", plain)) == 1
    assert "<script>alert" not in page
    shape = [element.tag for element in parsed(plain).iter()]
    assert [element.tag for element in parsed(page.replace("\x00", "").replace("\x1b", "")).iter()] == shape


def test_html_has_headings_in_order_and_ids_once():
    tree = parsed(as_html(everything()))
    levels = [int(element.tag[1]) for element in tree.iter() if re.fullmatch("h[1-6]", str(element.tag))]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    named = {
        word
        for element in tree.iter()
        for of in ("aria-labelledby", "aria-describedby")
        for word in (element.get(of) or "").split()
    }
    assert named <= set(ids)


def test_tables_and_drawings_can_be_read_aloud():
    tree = parsed(as_html(everything()))
    assert all(cell.get("scope") in ("col", "row") for cell in tree.iter("th"))
    drawings = [svg for svg in tree.iter("svg") if svg.get("aria-hidden") != "true"]
    assert len(drawings) >= 6
    for svg in drawings:
        assert svg.get("role") == "img"
        assert [child.tag for child in svg][:2] == ["title", "desc"]
        assert svg.find("desc").text.endswith(".")


def test_html_shows_what_is_wrong_and_where():
    page = as_html(everything())
    text = " ".join("".join(parsed(page).itertext()).split())
    for words in (
        "queries are turned by the next position's angle",
        "Parts at q_rope",
        "197 of 198 elements lie in their intervals; some further off than any scale admits, or NaN",
        "6 rows by 33 columns; 1 of 198 hold an element outside its interval",
        "✗ outside:",
        "Fails as expected",
        "could not be run",
        *(cause.command for cause in everything().causes),
    ):
        assert words in text, words


def test_the_ring_is_around_the_worst_element():
    (output,) = (each for each in everything().verdicts[0].outputs if each.worst)
    assert output.worst.index == (1, 0, 5)
    assert heat_map(output, output.errors).worst == (5.5 * CELL, 3.5 * CELL)


def test_a_report_of_thousands_of_failures_is_no_large_page():
    cases = [case.id for case in select("*/float32/*", op="rms_norm") if 0 < np.prod(case.shape) < 1000]
    verdicts = [judged(case, sevens) for case in cases]
    verdicts += [unjudged(case.id, "error", f"error {case.id}") for case in select("*/float64/*", op="rms_norm")]
    assert len(as_html(report(*verdicts))) < 2**20
