"""The journey of a property: kind -> questions -> port(first), port(variant) -> difference -> finding."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np

from conformance.golden import golden
from conformance.norms.cases import NormCase
from conformance.process import Family, PortFailure, PortProcess, RunningPort
from conformance.properties import BY_ID, PROPERTIES, Finding, Property, Status, difference, verdict
from conformance.protocol import Answer, Hello
from conformance.rounding import NUMPY_DTYPES
from conformance.row_scale import row_scale
from conformance.runner import unsupported
from conformance.session import NoAnswer, Session, asked_of
from conformance.variants import Question, Variant, questions

Array = np.ndarray
Start = Callable[[str], RunningPort]
"""Starts the port in a mode, `jit` or `eager`. Raises `PortFailure`."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What became of one port. `failure` is set, and `hello` is not, where it could not be run at all."""

    spec: str
    hello: Hello | None
    findings: tuple[Finding, ...]
    failure: str = ""


def inquire_ports(
    commands: dict[str, list[str]],
    kinds: tuple[NormCase, ...],
    *,
    wanted: tuple[Property, ...] = PROPERTIES,
    seed: int = 0,
    device: str = "cpu",
    mode: str = "jit",
    timeout: float = 120.0,
    on_kind: Callable[[str], None] = lambda spec: None,
) -> tuple[Inquiry, ...]:
    """Ask every port (its spec and the command that starts it) about the properties wanted, one after the other.

    `on_kind` is called with the port's spec as each of the kinds is done.
    """
    family = Family()

    def start(command: list[str], mode: str) -> PortProcess:
        return PortProcess(command, device=device, mode=mode, timeout=timeout, family=family)

    ids = {each.id for each in wanted}
    inquiries: list[Inquiry] = []
    try:
        for spec, command in commands.items():
            start_in, done = partial(start, command), partial(on_kind, spec)
            inquiries.append(inquire(spec, start_in, kinds, wanted=ids, mode=mode, seed=seed, timeout=timeout, on_kind=done))
    finally:
        family.end()
    return tuple(inquiries)


def inquire(
    spec: str,
    start: Start,
    kinds: tuple[NormCase, ...],
    *,
    wanted: set[str],
    mode: str,
    seed: int,
    timeout: float,
    on_kind: Callable[[], None] = lambda: None,
) -> Inquiry:
    """Ask one port about the properties wanted (their ids), in every kind."""
    other_mode = "eager" if mode == "jit" else "jit"
    with Session(partial(start, mode), timeout) as session, Session(partial(start, other_mode), timeout) as other:
        try:
            hello = session.hello
        except PortFailure as failure:
            return Inquiry(spec, None, (), str(failure))
        findings: list[Finding] = []
        for kind in kinds:
            findings += _of_kind(kind, session, other, hello, seed, wanted)
            golden.cache_clear()  # these are asked about once
            on_kind()
    return Inquiry(spec, hello, tuple(findings))


def _of_kind(kind: NormCase, session: Session, other: Session, hello: Hello, seed: int, wanted: set[str]) -> Iterator[Finding]:
    reason = unsupported(kind, hello)
    if reason:
        yield from (Finding(BY_ID[id_], kind, "not asked", reason) for id_ in BY_ID if id_ in wanted)
        return
    for question in questions(kind, seed):
        variants = tuple(variant for variant in question.variants if variant.property in wanted)
        if variants or "inputs_kept" in wanted or ("row_scale" in wanted and question.measured):
            found = _put(question, variants, session, other, hello)
            yield from (finding for finding in found if finding.property.id in wanted)


def _put(
    question: Question, variants: tuple[Variant, ...], session: Session, other: Session, hello: Hello
) -> Iterator[Finding]:
    """Ask a question and its variants, and judge: each variant, whether the inputs were kept, and the row scale."""
    case = question.case
    try:
        first = session.ask(case, question.golden.inputs)
    except NoAnswer as none:
        ids = ["inputs_kept", *(["row_scale"] if question.measured else []), *(each.property for each in variants)]
        yield from (Finding(BY_ID[id_], case, _without_answer(none), str(none)) for id_ in dict.fromkeys(ids))
        return
    answers = [first]
    if question.measured:
        yield _row_scale(question, first)
    asked = asked_of(case, hello)
    for variant in variants:
        property_ = BY_ID[variant.property]
        if variant.follows and not set(variant.follows) & set(asked):
            yield Finding(property_, case, "not asked", "no gradients")
            continue
        try:
            second = (other if variant.other_mode else session).ask(variant.case, variant.given)
        except NoAnswer as none:
            yield Finding(property_, case, _without_answer(none), f"{variant.what}: {none}")
            continue
        answers.append(second)
        if variant.follows:
            yield compared(question, variant, first.outputs, second.outputs)
    yield _inputs_kept(case, answers, hello.overwrites)


def _inputs_kept(case: NormCase, answers: list[Answer], declared: tuple[str, ...]) -> Finding:
    property_ = BY_ID["inputs_kept"]
    overwritten = sorted({name for answer in answers for name in answer.overwrote or ()})
    if undeclared := ", ".join(name for name in overwritten if name not in declared):
        return Finding(property_, case, "violated", f"overwrites {undeclared}", shown=undeclared)
    if names := ", ".join(overwritten):
        return Finding(property_, case, "declared", f"overwrites {names}, as the port declares", shown=names)
    if any(answer.overwrote is None for answer in answers):
        return Finding(property_, case, "not asked", "the port does not say what it overwrites")
    return Finding(property_, case, "holds", "every input has its bits")


def compared(question: Question, variant: Variant, first: dict[str, Array], second: dict[str, Array]) -> Finding:
    """Judge what a variant gave by what it had to give, in all outputs that follow from the first answer and were asked."""
    differences = []
    for name in (name for name in variant.follows if name in first):
        follow, dtype = variant.follows[name], question.case.outputs[name]
        base, lower, upper = (np.asarray(a, np.float64) for a in (first[name], *question.golden.outputs[name].interval()))
        expected, actual = follow(base), second[name].astype(np.float64)
        judged = np.ones(expected.shape, bool)
        if variant.scaled:
            smallest = float(ml_dtypes.finfo(NUMPY_DTYPES[dtype]).smallest_normal)
            judged = ~((np.abs(follow(base)) < smallest) | (follow(np.abs(base) < smallest) > 0))
        width = follow(np.broadcast_to(upper - lower, base.shape))
        differences.append(difference(name, expected, actual, width, judged, dtype))
    return verdict(BY_ID[variant.property], question.case, variant.what, differences)


def _row_scale(question: Question, answer: Answer) -> Finding:
    scale = row_scale(question.golden, answer.outputs["y"].astype(np.float64))
    excess = max(abs(scale.mean) / scale.mean_limit, scale.spread / scale.spread_limit)
    status = "holds" if scale.holds else "violated"
    scattered = scale.spread > scale.spread_limit and abs(scale.mean) <= scale.mean_limit
    shown = f"spread {scale.spread:.1e}" if scattered else f"z {scale.z:.2g}"
    return Finding(BY_ID["row_scale"], question.case, status, scale.words, excess, shown)


def _without_answer(none: NoAnswer) -> Status:
    return "error" if none.status == "error" else "not asked"
