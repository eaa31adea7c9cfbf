"""The judge is sound: nothing is missed, nothing is called hidden that is not, and there is room between right and wrong.

That nothing is missed is asked of all mistakes, by the quick cases alone; the rest of a sample. `conformance selftest` asks all
mistakes of all cases.
"""

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from conformance.mistakes import MISTAKES
from conformance.numbers.rounding import DTYPES
from conformance.ops.cases import CASES
from conformance.ops.norms.cases import NORMS
from conformance.ops.quick import QUICK
from conformance.ops.table import OPS
from conformance.tools.selftest.quick import cover, misses
from conformance.tools.selftest.report import page, show_self_test
from conformance.tools.selftest.selftest import (
    SEPARATION,
    Kill,
    SelfTest,
    Separation,
    honest_ratios,
    kill,
    self_test,
    steps,
    tried_in,
)

PAGE = Path(__file__).parents[2] / "docs" / "kill_matrix.md"
EVERY = 12  # one place in so many where a mistake is said to be hidden is looked at
SAMPLE = tuple(each for each in MISTAKES if each.id in ("variance_for_mean_square", "gelu_of_the_other_formula"))


def as_said() -> SelfTest:
    """What a self-test finds if every mistake is seen wherever the catalogue says that it is, and there alone."""
    return SelfTest(
        tuple(
            Kill(
                mistake.id,
                op,
                dtype,
                ratio=0.0 if mistake.hidden_in(op, dtype) or mistake.needs_taps_in(op, dtype) else 2.0,
                case="",
                output="",
                reason=mistake.hidden_in(op, dtype),
                taps=2.0 if mistake.needs_taps_in(op, dtype) else 0.0,
                needs_taps=mistake.needs_taps_in(op, dtype),
            )
            for mistake in MISTAKES
            for op, dtype in tried_in(mistake)
        ),
        (),
    )


SAID = as_said()
BY_ID = {mistake.id: mistake for mistake in MISTAKES}


@pytest.fixture(scope="module")
def counted() -> list[int]:
    return []


@pytest.fixture(scope="module")
def result(counted) -> SelfTest:
    return self_test(1, SAMPLE, lambda: counted.append(1))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_quick_cases_reject_every_mistake_wherever_it_can_be_seen(dtype):
    """And so does the whole suite, of which they are a part."""
    assert misses([said for said in SAID.kills if not said.reason and said.dtype == dtype], QUICK) == []


def test_the_quick_cases_are_few():
    assert len(QUICK) < len(CASES) / 4


@pytest.mark.parametrize(
    ("id_", "op", "dtype"),
    [(said.mistake, said.op, said.dtype) for said in SAID.kills if said.reason][::EVERY]
    + [(said.mistake, said.op, said.dtype) for said in SAID.kills if said.needs_taps],
)
def test_what_is_said_to_be_hidden_is(id_, op, dtype):
    assert kill(BY_ID[id_], op, dtype).right


def test_a_mistake_is_tried_in_every_op_and_dtype_that_it_is_made_in():
    assert {(said.mistake, said.op) for said in SAID.kills} == {(mistake.id, op) for mistake in MISTAKES for op in mistake.ops}
    assert not [said for said in SAID.kills if said.dtype == "float32" and said.op == "pre_ln_block" and said.needs_taps]


@pytest.mark.parametrize("op", OPS)
def test_honest_arithmetic_does_not_use_up_its_tolerance(op):
    """In one dtype of the op, and in the next one of the next."""
    dtypes = [dtype for dtype in DTYPES if any((case.op, case.dtype) == (op, dtype) for case in CASES)]
    ratios = honest_ratios(op, dtypes[list(OPS).index(op) % len(dtypes)])
    assert ratios
    assert max(ratios.values()) < 0.9


def test_right_and_wrong_lie_far_apart(result):
    of_norms = [separation for separation in result.separations if separation.op in NORMS]
    assert {(separation.op, separation.output) for separation in of_norms} == {
        (case.op, output) for case in CASES if case.op in {each.op for each in of_norms} for output in case.outputs
    }
    assert min(separation.factor for separation in of_norms) >= 10 * SEPARATION
    assert {separation.output for separation in result.separations if separation.op not in NORMS} == {"outputs", "taps"}
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
    separation = next(each for each in result.separations if each.weakest)
    close = Separation(separation.op, separation.dtype, separation.output, 0.9, replace(separation.weakest, ratio=5.0))
    assert not SelfTest(result.kills, (close,)).passes


def test_the_page_is_that_of_this_catalogue():
    """Ids and hidden mistakes as they are; the figures themselves may differ a little from machine to machine."""
    shape = re.compile(r"^\| `(\w[\w.-]*)` \| (.*) \|$", re.MULTILINE)

    def cells(text: str) -> list[tuple[str, list[bool]]]:
        return [(id_, [cell == "hidden" for cell in row.split(" | ")]) for id_, row in shape.findall(text)]

    assert cells(PAGE.read_text()) == cells(page(SAID))
    assert "missed" not in PAGE.read_text()


def test_it_counts_its_steps(result, counted):
    assert len(counted) == steps(SAMPLE)
    assert {kill.mistake for kill in result.kills} == {mistake.id for mistake in SAMPLE}


def shown(result: SelfTest) -> str:
    text = StringIO()
    show_self_test(result, Console(file=text, width=200))
    return text.getvalue()


def test_the_quick_cases_are_about_a_fifth():
    """As docs/commands.md and docs/loops.md say."""
    assert 0.15 < len(QUICK) / len(CASES) < 0.25


def test_a_mistake_that_the_quick_cases_lack_is_told():
    of_the_eps = [kill for kill in SAID.kills if kill.mistake == "eps_outside_root"]
    assert misses(of_the_eps, [case for case in QUICK if case.op == "rms_norm"]) == [
        kill for kill in of_the_eps if kill.op != "rms_norm"
    ]


def test_a_cover_is_small_and_whole():
    few = [case for case in QUICK if case.op == "gelu"]
    everything, first, last = ({case.id for case in cases} for cases in (few, few[:1], few[-1:]))
    found = {("a", "gelu", "float32"): everything, ("b", "gelu", "float32"): first, ("c", "gelu", "float32"): last}
    assert cover(found) == (few[0], few[-1])
