"""The collectives of norms whose arrays are split over devices, in the programs that XLA compiles: how many, how many bytes."""

import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import jax

import ports.flax_nnx.port
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.ops.norms.cases import NORMS, NormCase
from conformance.ops.ranks import least_collectives
from conformance.port.session import call_of
from conformance.question.case import Case
from conformance.question.collectives import Collectives
from impl_jax.port import JaxPort, Port, ShardMap, cotangents

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
COLLECTIVE = re.compile(rf"^.*? = (?P<made>.*?) (?:{KINDS})(?:-start)?\(", re.MULTILINE)
ARRAY = re.compile(r"(?P<dtype>[a-z]+)(?P<bits>\d+)\[(?P<shape>[\d,]*)\]")

PORTS: tuple[type[JaxPort], ...] = (Port, ShardMap, ports.flax_nnx.port.Careful, ports.flax_nnx.port.ShardMap)
ASKED = {(op, "float32") for op in NORMS if op not in ("add_layer_norm", "quantised_add_rms_norm")}
SPLITS = ("sharded_rows", "sharded_features")
WAYS = ("forward", "backward")
RESULTS = Path(__file__).parent.parent / "results"


def counted(program: str) -> Collectives:
    """The collectives of a compiled program, from its HLO. One that sums several arrays at once is one."""
    made = [each["made"] for each in COLLECTIVE.finditer(program)]
    arrays = [array for each in made for array in ARRAY.finditer(each)]
    sizes = [int(each["bits"]) // 8 * prod(int(n) for n in each["shape"].split(",") if n) for each in arrays]
    return Collectives(len(made), sum(sizes))


def programs(port: type[JaxPort], case: Case) -> list[str]:
    """What a port compiles to answer a case, in HLO: what runs before dy is known, then what runs after, if a dy there is."""
    texts: list[str] = []

    def compiled(function: Any, *arguments: Any) -> Any:
        program = jax.jit(function).lower(*arguments).compile()
        texts.append(program.as_text())
        return program(*arguments)

    class Compiled(port):
        def program(self, how: Any) -> Any:
            def run(function: Any, inputs: tuple, dy: Any = None, **constants: Any) -> Any:
                of_inputs = partial(function, **constants)
                if dy is None:
                    return compiled(of_inputs, *inputs)
                made, pullback = compiled(partial(jax.vjp, of_inputs), *inputs)
                return made, compiled(lambda pullback, dy: pullback(dy), pullback, cotangents(made, dy))

            return run

    inputs = golden(case, 0).inputs
    Compiled().answer(call_of(case, tuple(case.outputs), inputs, taps=False), inputs)
    return texts


def cases() -> Iterator[NormCase]:
    """Of every norm the cases in float32 that are split over rows, or over features; BatchNorm's as flax has it."""
    for case in CASES:
        asked = isinstance(case, NormCase) and (case.op, case.dtype) in ASKED and case.layout in SPLITS
        if asked and not any(kind in case.id for kind in ("/gate_then_norm", "/training/")):
            yield case


def measure_collectives() -> list[dict[str, str | float]]:
    """A row for every port, norm and split: the collectives forward and backward, each beside the least there can be."""
    rows: list[dict[str, str | float]] = []
    for port, case in product(PORTS, cases()):
        if hasattr(port, case.op):
            forward, backward = (*map(counted, programs(port, case)), Collectives(0, 0))[:2]
            least_forward, least_backward = least_collectives(case)
            rows.append(
                {
                    "port": port.name,
                    "op": case.op,
                    "split": case.layout.removeprefix("sharded_"),
                    "forward": str(forward),
                    "least forward": str(least_forward),
                    "backward": str(backward),
                    "least backward": str(least_backward),
                }
            )
    return rows


def page_table(file: Path = RESULTS / "collectives.json") -> str:
    """The table of docs/sharding.md, from the figures in a file: a row for every norm and split, and what each port takes."""
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    names = list(dict.fromkeys(row["port"] for row in rows))
    head = ("norm", "split", *(f"least {way}" for way in WAYS), *(f"{name}: forward, backward" for name in names))
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for op, split in dict.fromkeys((row["op"], row["split"]) for row in rows):
        of_it = {row["port"]: row for row in rows if (row["op"], row["split"]) == (op, split)}
        least = [of_it[names[0]][f"least {way}"] for way in WAYS]
        counts = [", ".join(of_it[name][way] for way in WAYS) if name in of_it else "" for name in names]
        lines.append(f"| {' | '.join((op, split, *least, *counts))} |")
    return "\n".join(lines)
