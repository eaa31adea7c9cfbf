"""The journey of a property: kind -> questions -> port(first), port(variant) -> difference -> finding."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from conformance.numbers.rounding import FORMATS
from conformance.ops.golden import golden
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.golden import expected_outputs, norm_values
from conformance.ops.norms.tolerances import NormBudget, norm_budget
from conformance.ops.norms.values import NormValues
from conformance.port.launch import Launch
from conformance.port.process import Family, PortFailure
from conformance.port.protocol import Answer, Hello
from conformance.port.session import NoAnswer, Session, asked_of
from conformance.running.runner import unsupported
from conformance.tools.properties.batches import judge_batches
from conformance.tools.properties.properties import BY_ID, PROPERTIES, Finding, Property, Status, difference, verdict
from conformance.tools.properties.row_scale import row_scale
from conformance.tools.properties.variants import Question, Variant, questions
from conformance.tools.properties.whole_tensor import judge_whole

Array = np.ndarray
IN_TURN = frozenset({"repeatable", "stateless"})  # each asks again what the other has come between
MEASURED = ("row_count", "row_scale", "unbiased", "precise")  # asked of many rows, and not by a variant


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What became of one port. `failure` is set, and `hello` is not, where it could not be run at all."""

    launch: Launch
    hello: Hello | None
    findings: tuple[Finding, ...]
    failure: str = ""


def inquire_ports(
    launches: Iterable[Launch],
    kinds: tuple[NormCase, ...],
    *,
    wanted: tuple[Property, ...] = PROPERTIES,
    bitwise: bool = False,
    seed: int = 0,
    on_kind: Callable[[str], None] = lambda spec: None,
) -> tuple[Inquiry, ...]:
    """Ask every port about the properties wanted, one after the other.

    `bitwise` asks for the same bits whatever a request shares its batch or its process with. `on_kind` is called with the
    port's spec as each of the kinds is done.
    """
    family = Family()
    ids = {each.id for each in wanted}
    asked = partial(inquire, kinds=kinds, wanted=ids, seed=seed, bitwise=bitwise, family=family)
    try:
        return tuple(asked(launch, on_kind=partial(on_kind, launch.spec)) for launch in launches)
    finally:
        family.end()


def inquire(
    launch: Launch,
    kinds: tuple[NormCase, ...],
    *,
    wanted: set[str],
    seed: int,
    bitwise: bool = False,
    family: Family | None = None,
    on_kind: Callable[[], None] = lambda: None,
) -> Inquiry:
    """Ask one port about the properties wanted (their ids), in every kind."""
    in_other_mode = replace(launch, mode="eager" if launch.mode == "jit" else "jit")
    with (
        Session(launch, family) as session,
        Session(in_other_mode, family) as other,
        Session(launch, family) as apart,
    ):
        try:
            hello = session.hello
        except PortFailure as failure:
            return Inquiry(launch, None, (), str(failure))
        inquirer = Inquirer(session, other, apart, hello, frozenset(wanted), bitwise)
        findings: list[Finding] = []
        for kind in kinds:
            findings += inquirer.of_kind(kind, seed)
            golden.cache_clear()  # these are asked about once
            on_kind()
    return Inquiry(launch, hello, tuple(findings))


@dataclass(frozen=True, slots=True)
class Inquirer:
    """One port in three processes: the one that is asked everything, one in the other mode, and one that is asked apart."""

    session: Session
    other: Session
    apart: Session
    hello: Hello
    wanted: frozenset[str]
    bitwise: bool

    def of_kind(self, kind: NormCase, seed: int) -> Iterator[Finding]:
        """What is found of one kind, of the properties wanted."""
        reason = unsupported(kind, self.hello)
        if reason:
            yield from (Finding(BY_ID[id_], kind, "not asked", reason) for id_ in BY_ID if id_ in self.wanted)
            return
        for question in questions(kind, seed):
            if self._about(question):
                yield from (finding for finding in self._put(question) if finding.property.id in self.wanted)

    def _about(self, question: Question) -> list[str]:
        """The properties wanted that a question is about."""
        ids = ["inputs_kept", *(MEASURED if question.measured else ()), *(each.property for each in question.variants)]
        return [id_ for id_ in dict.fromkeys(ids) if id_ in self.wanted]

    def _put(self, question: Question) -> Iterator[Finding]:
        """Ask a question and its variants, and judge: each variant, whether the inputs were kept, and many rows as a whole."""
        try:
            first = self.session.ask(question.case, question.golden.inputs)
        except NoAnswer as none:
            about = self._about(question)
            yield from (Finding(BY_ID[id_], question.case, _without_answer(none), str(none)) for id_ in about)
            return
        answers = [first]
        for variant in filter(self._asks, question.variants):
            yield self._of_variant(question, variant, first, answers)
        if question.measured and self.wanted & set(MEASURED):
            yield from self._of_many_rows(question, first, answers)
        yield _inputs_kept(question.case, answers, self.hello.overwrites)

    def _asks(self, variant: Variant) -> bool:
        """Whether a variant is asked: it is wanted, or stands between questions that are."""
        between = variant.property in IN_TURN and not self.wanted.isdisjoint(IN_TURN)
        return between or variant.property in self.wanted

    def _of_variant(self, question: Question, variant: Variant, first: Answer, answers: list[Answer]) -> Finding:
        """Ask a variant, add its answer to the `answers`, and judge it."""
        property_, case = BY_ID[variant.property], question.case
        if not set(variant.follows) & set(asked_of(case, self.hello)):
            return Finding(property_, case, "not asked", "no gradients")
        try:
            answer = (self.other if variant.other_mode else self.session).ask(variant.case, variant.given)
            answers.append(answer)
            known = self.apart.ask(variant.case, variant.given) if variant.apart else first
        except NoAnswer as none:
            return Finding(property_, case, _without_answer(none), f"{variant.what}: {none}")
        return compared(question, variant, known.outputs, answer.outputs, bitwise=self.bitwise)

    def _of_many_rows(self, question: Question, first: Answer, answers: list[Answer]) -> Iterator[Finding]:
        case, outputs = question.case, first.outputs
        norm, _ = norm_values(case, question.golden.inputs)
        budget = norm_budget(norm)
        if "row_scale" in self.wanted:
            yield _row_scale(question, norm, budget, first)
        if self.wanted & {"unbiased", "precise"}:
            yield from judge_whole(question.golden, norm, budget, outputs)
        if "row_count" in self.wanted:
            try:
                finding, parts = judge_batches(question, budget, first, self.session, bitwise=self.bitwise)
            except NoAnswer as none:
                yield Finding(BY_ID["row_count"], case, _without_answer(none), str(none))
                return
            answers += parts
            yield finding


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


def compared(
    question: Question, variant: Variant, known: dict[str, Array], actual: dict[str, Array], *, bitwise: bool = False
) -> Finding:
    """Judge what a variant gave by what it had to give: in all outputs that follow from a `known` answer, and were asked."""
    expected = {name: follow(known[name].astype(np.float64)) for name, follow in variant.follows.items() if name in known}
    given = {name: actual[name].astype(np.float64) for name in expected}
    differences = []
    if not all(np.array_equal(expected[name], given[name]) for name in expected):
        widths = _widths(question, variant)
        for name, base in expected.items():
            dtype, follow = question.case.outputs[name], variant.follows[name]
            judged = np.ones(base.shape, bool)
            if variant.scaled:
                smallest = FORMATS[dtype].smallest_normal
                judged = ~((np.abs(base) < smallest) | (follow(np.abs(known[name].astype(np.float64)) < smallest) > 0))
            differences.append(difference(name, base, given[name], follow(widths[name]), judged, dtype))
    return verdict(BY_ID[variant.property], question.case, variant.what, differences, bitwise=bitwise)


def _widths(question: Question, variant: Variant) -> dict[str, Array]:
    """How far two honest answers may be apart: to the first question or, of one that stands apart, to the variant itself."""
    case, outputs = question.case, question.golden.outputs
    if variant.apart:
        outputs = expected_outputs(case.dtype, norm_values(case, variant.given)[0], case.dialect, case.outputs)
    intervals = {name: outputs[name].interval() for name in variant.follows}
    return {name: np.broadcast_to(upper - lower, case.output_shape(name)) for name, (lower, upper) in intervals.items()}


def _row_scale(question: Question, norm: NormValues, budget: NormBudget, answer: Answer) -> Finding:
    scale = row_scale(question.golden, norm, budget, answer.outputs["y"].astype(np.float64))
    excess = max(abs(scale.mean) / scale.mean_limit, scale.spread / scale.spread_limit)
    status = "holds" if scale.holds else "violated"
    scattered = scale.spread > scale.spread_limit and abs(scale.mean) <= scale.mean_limit
    shown = f"spread {scale.spread:.1e}" if scattered else f"z {scale.z:.2g}"
    return Finding(BY_ID["row_scale"], question.case, status, scale.words, excess, shown)


def _without_answer(none: NoAnswer) -> Status:
    return "error" if none.status == "error" else "not asked"
