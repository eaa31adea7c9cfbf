"""A random search, over inputs of every kind, for an honest float32 implementation that is rejected."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from benchmarks.limits import expect
from conformance.judging.compare import compare_output
from conformance.ops.cases import select
from conformance.ops.norms.cases import ROW_NORMS, NormCase
from conformance.tools.judges.honest import ARRANGEMENTS, Arrangement, Honest

Array = np.ndarray
Row = dict[str, str | float]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

TRIALS = 400  # inputs of each op
WIDTHS = (2, 3, 7, 16, 33, 129, 768)
OFFSETS = (0.0, 0.0, 1.0, 30.0, 1e3, 1e5)

KINDS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "constant": lambda rng, shape: np.full(shape, rng.uniform(1, 2)),
    "sorted": lambda rng, shape: np.sort(rng.normal(size=shape)),
    "spike": lambda rng, shape: np.where(np.arange(shape[-1]) == 0, 1e3, rng.normal(size=shape)),
    "sparse": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.05),
    "heavy tails": lambda rng, shape: rng.standard_cauchy(size=shape),
    "two values": lambda rng, shape: np.where(rng.random(shape) < 0.5, *rng.uniform(1, 10, size=2)),
}


def tables() -> Iterator[tuple[str, list[Row]]]:
    """The one table."""
    yield "search", search()


def search() -> list[Row]:
    """The largest ratio of every output: shallow sums, one-by-one sums, and Welford's updates."""
    largest: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    rng = np.random.default_rng(0)
    for op in ROW_NORMS:
        for _ in range(TRIALS):
            case, given = draw(rng, op)
            expected = expect(case, given)
            for order in ("sequential", "pairwise", "32 lanes"):
                for arrangement in ARRANGEMENTS:
                    column = _column(case, order, arrangement)
                    for name, out in Honest(case, given, order, arrangement).outputs().items():
                        ratio = compare_output(name, expected[name], out).ratio
                        largest[op, name][column] = max(largest[op, name][column], ratio)
    columns = ("shallow", "one by one, up to 33", "one by one, longer", "Welford, up to 33", "Welford, longer")
    return [
        {"op": op, "output": name} | {column: found.get(column, np.nan) for column in columns}
        for (op, name), found in largest.items()
    ]


def _column(case: NormCase, order: str, arrangement: Arrangement) -> str:
    length = "up to 33" if max(case.shape) <= 33 else "longer"
    if case.op == "layer_norm" and arrangement.variance == "welford":
        return f"Welford, {length}"
    return f"one by one, {length}" if order == "sequential" else "shallow"


def draw(rng: np.random.Generator, op: str) -> tuple[NormCase, dict[str, Array]]:
    """A case of random width, and inputs of random kinds."""
    (case,) = select(f"{op}/either_order/float32/random")
    n, rows = int(rng.choice(WIDTHS)), int(rng.choice([1, 4, 33]))
    case = replace(case, shape=(rows, n))

    def tensor() -> Array:
        kind = list(KINDS.values())[rng.integers(len(KINDS))]
        return kind(rng, case.shape) + rng.choice(OFFSETS) * rng.uniform(0.5, 2)

    tensors = {"x": tensor(), "dy": tensor(), "weight": rng.normal(size=n)}
    tensors |= {"bias": rng.normal(size=n)} if case.bias else {}
    return case, {name: a.astype(np.float32) for name, a in tensors.items()}
