"""The judge is sound: nothing is missed, nothing is called hidden that is not, and there is room between right and wrong."""

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from conformance.mistakes import MISTAKES
from conformance.ops.cases import CASES
from conformance.ops.norms.cases import NORMS
from conformance.ops.quick import QUICK
from conformance.tools.selftest.quick import cover, misses
from conformance.tools.selftest.report import page, show_self_test
from conformance.tools.selftest.selftest import SEPARATION, SelfTest, Separation, kills_of, self_test, steps

PAGE = Path(__file__).parents[2] / "docs" / "kill_matrix.md"


@pytest.fixture(scope="module")
def result() -> SelfTest:
    return self_test(jobs=1)


def test_every_mistake_is_seen_wherever_it_can_be(result):
    assert result.wrong == ()
    assert len({(kill.mistake, kill.op) for kill in result.kills}) == sum(len(mistake.ops) for mistake in MISTAKES)
    assert not [kill for kill in result.kills if kill.dtype == "float32" and kill.op == "pre_ln_block" and kill.needs_taps]


def test_right_and_wrong_lie_far_apart(result):
    of_norms = [separation for separation in result.separations if separation.op in NORMS]
    assert len(of_norms) == 4 * (3 + 4 + 5 + 6 + 4 + 6) + 3 * (2 + 3)
    assert min(separation.factor for separation in of_norms) >= 10 * SEPARATION
    assert {separation.output for separation in result.separations if separation.op not in NORMS} == {"outputs", "taps"}
    assert max(separation.honest for separation in result.separations) < 0.9
    assert result.passes


def test_a_miss_is_told(result):
    missed = replace(result.kills[0], ratio=0.5)
    broken = SelfTest((missed, *result.kills[1:]), result.separations)
    assert not broken.passes
    assert f"{missed.mistake} in {missed.op} {missed.dtype}: missed" in shown(broken)
    assert "**missed**" in page(broken)


def test_a_mistake_wrongly_called_hidden_is_told(result):
    stale = replace(result.kills[0], reason="it looks like nothing")
    broken = SelfTest((stale, *result.kills[1:]), result.separations)
    assert not broken.passes
    assert "said to be hidden (it looks like nothing)" in shown(broken)


def test_a_mistake_that_only_taps_show_must_be_shown_by_one(result):
    kill = next(kill for kill in result.kills if kill.needs_taps)
    assert kill.right
    assert not kill.seen
    assert not replace(kill, taps=0.5).right
    assert not replace(kill, ratio=2.0).right
    assert not replace(kill, needs_taps="").right
    broken = SelfTest((replace(kill, ratio=2.0), *result.kills[1:]), result.separations)
    assert f"{kill.mistake} in {kill.op} {kill.dtype}: said to need taps" in shown(broken)


def test_too_little_room_is_told(result):
    separation = result.separations[0]
    close = Separation(separation.op, separation.dtype, separation.output, 0.9, replace(separation.weakest, ratio=5.0))
    assert not SelfTest(result.kills, (close,)).passes


def test_the_page_is_that_of_this_catalogue(result):
    """Ids and hidden mistakes as they are; the figures themselves may differ a little from machine to machine."""
    shape = re.compile(r"^\| `(\w[\w.-]*)` \| (.*) \|$", re.MULTILINE)

    def cells(text: str) -> list[tuple[str, list[bool]]]:
        return [(id_, [cell == "hidden" for cell in row.split(" | ")]) for id_, row in shape.findall(text)]

    assert cells(PAGE.read_text()) == cells(page(result))
    assert "missed" not in PAGE.read_text()


def test_it_counts_its_steps():
    counted = []
    one = [mistake for mistake in MISTAKES if mistake.id == "offset_unasked"]
    self_test(1, one, lambda: counted.append(1))
    assert len(counted) == steps(one)
    assert {kill.mistake for kill in kills_of("offset_unasked")} == {"offset_unasked"}


def shown(result: SelfTest) -> str:
    text = StringIO()
    show_self_test(result, Console(file=text, width=200))
    return text.getvalue()


def test_the_quick_cases_reject_whatever_the_suite_rejects(result):
    assert misses(result.kills, QUICK) == []
    assert len(QUICK) < len(CASES) / 4


def test_a_mistake_that_the_quick_cases_lack_is_told(result):
    of_the_eps = [kill for kill in result.kills if kill.mistake == "eps_outside_root"]
    assert misses(of_the_eps, [case for case in QUICK if case.op == "rms_norm"]) == [
        kill for kill in of_the_eps if kill.op != "rms_norm"
    ]


def test_a_cover_is_small_and_whole():
    few = [case for case in QUICK if case.op == "gelu"]
    everything, first, last = ({case.id for case in cases} for cases in (few, few[:1], few[-1:]))
    found = {("a", "gelu", "float32"): everything, ("b", "gelu", "float32"): first, ("c", "gelu", "float32"): last}
    assert cover(found) == (few[0], few[-1])
