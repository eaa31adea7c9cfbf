"""`conformance list` and `conformance explain`: what the kit knows."""

from collections import defaultdict
from typing import Annotated, Literal

import typer

from conformance.cli.options import DEFAULT_PORTS, CaseOption, DTypeOption, ExcludeOption, OpOption, selected
from conformance.mistakes import MISTAKES, Mistake
from conformance.numbers.nearest import did_you_mean
from conformance.ops.cases import select
from conformance.question.dialects import DIALECTS
from conformance.tools.properties.properties import PROPERTIES

Listing = Literal["cases", "dialects", "mistakes", "ports", "properties"]


def list_(
    what: Annotated[Listing, typer.Argument(help="cases, dialects, mistakes, properties or ports.")] = "cases",
    op: OpOption = None,
    dtype: DTypeOption = None,
    case: CaseOption = None,
    exclude: ExcludeOption = None,
) -> None:
    """List what the kit knows: cases (id, shape, what it exposes), dialects, mistakes (what they alter), properties, ports."""
    match what:
        case "cases":
            cases = selected(case, op, dtype, exclude)
            rows = [(each.id, str(list(each.shape)), each.exposes) for each in cases]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            print("\n".join(f"{id_:{widths[0]}}  {shape:{widths[1]}}  {exposes}" for id_, shape, exposes in rows))
        case "dialects":
            width = max(len(dialect.name) for dialect in DIALECTS)
            for dialect in DIALECTS:
                print(f"{dialect.name:{width}}  {dialect.sentence}")
        case "mistakes":
            by_change = defaultdict[str, list[Mistake]](list)
            for mistake in MISTAKES:
                by_change[", ".join(mistake.change)].append(mistake)
            for altered, mistakes in by_change.items():
                print(altered, *(f"  {mistake.id:32}  {mistake.sentence}" for mistake in mistakes), sep="\n")
        case "properties":
            for each in PROPERTIES:
                print(f"{each.id:13}  {each.sentence}")
        case "ports":
            rows = _ports()
            width = max(len(name) for name, _ in rows)
            print("\n".join(f"{name:{width}}  {readiness}" for name, readiness in rows))


def _ports() -> list[tuple[str, str]]:
    """The ports that have a name of their own, the default ones first, and whether each is ready."""
    from conformance.port.naming import entry_points_by_name, missing_module

    needed = {name: (packages, "") for name, packages in DEFAULT_PORTS.items()}
    for name, entry in entry_points_by_name().items():
        of = f", from {entry.dist.name} {entry.dist.version}" if entry.dist else ""
        needed.setdefault(name, ((entry.module,), of))
    missing = {name: [each for each in map(missing_module, modules) if each] for name, (modules, _) in needed.items()}
    return [
        (name, (f"needs {', '.join(missing[name])}" if missing[name] else "ready") + of) for name, (_, of) in needed.items()
    ]


def explain(
    id_: Annotated[
        str, typer.Argument(metavar="ID", help="A case (or a glob that matches one), dialect, mistake or property.")
    ],
) -> None:
    """Say what a case, a dialect, a mistake or a property is about."""
    from conformance.tools.explanation import explain_case, explain_mistake, explain_property

    mistakes = {mistake.id: mistake for mistake in MISTAKES}
    dialects = {dialect.name: dialect for dialect in DIALECTS}
    properties = {each.id: each for each in PROPERTIES}
    if id_ in mistakes:
        print(explain_mistake(mistakes[id_]))
    elif id_ in dialects:
        print(f"{id_}\n  {dialects[id_].sentence}\n  cases     conformance list --case '*/{id_}/*'")
    elif id_ in properties:
        print(explain_property(properties[id_]))
    elif not select(id_) and (meant := did_you_mean(id_, [*mistakes, *dialects, *properties])):
        raise typer.BadParameter(f"nothing is called {id_!r}{meant}", param_hint="ID")
    else:
        case, *others = selected([id_], hint="ID")
        if others:
            raise typer.BadParameter(f"{1 + len(others)} cases match {id_!r}; name one, such as {case.id}", param_hint="ID")
        print(explain_case(case))
