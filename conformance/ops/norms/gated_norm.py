"""The table of the cases of a norm and a gate in one op: what only a gate, or its gradient, can get wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any, Literal

import numpy as np

from conformance.numbers.draws import LARGEST_BELL, bell, random_words
from conformance.numbers.rounding import DTYPES, HALF, DType, store
from conformance.ops.draw import Draw
from conformance.ops.norms.cases import EPS_1E_5, GATED_NORMS, GatedNormOp, NormCase, Probe
from conformance.ops.norms.sharded import SHARDED
from conformance.ops.norms.stages import Gated
from conformance.question import dialects
from conformance.question.case import FIXTURE_ELEMENTS
from conformance.question.dialects import Dialect
from reference.gated_norm import ACTIVATIONS, Activation

SHAPE = (3, 24)
STORED: dict[DType, tuple[str, ...]] = {"float32": ("random", "sigmoid", "groups_of_8"), **dict.fromkeys(HALF, ("random",))}
"""The cases whose golden values are stored, by dtype: what a reader in another language needs to see each of the functions."""

Gate = Literal["random", "shrinks", "negative", "zeros", "large", "nan"]

# What is multiplied by a normal number, and what is added to it.
GATES: dict[Gate, tuple[float, float]] = {
    "random": (2.0, 0.0),
    "shrinks": (0.125, -8.0),  # SiLU makes a mean square of 1e-5, the usual eps, of one
    "negative": (1.0, -12.0),
    "zeros": (2.0, 0.0),
    "large": (40.0, 800.0),  # whose exponential overflows
    "nan": (2.0, 0.0),
}


@dataclass(frozen=True)
class GatedProbe(Probe):
    """A row of the table: a case before its op, order, dialect and dtype are chosen.

    How the gate is drawn: `random`, of both signs; `shrinks`, so that x times its SiLU is as small as the root of eps;
    `negative`, every eighth so much so that the sigmoid is zero; every other one `zeros`; `large`; or with a `nan` in the
    first row.
    """

    shape: tuple[int, ...] = SHAPE
    gate: Gate = "random"
    activation: Activation = "silu"


@dataclass(frozen=True)
class GatedNormCase(GatedProbe, NormCase):
    """One question about a norm and a gate: whether the norm comes first, and which activation the gate has, are constants."""

    op: GatedNormOp = "gated_rms_norm"
    dialect: Dialect = field(default_factory=lambda: Dialect("either_order"))
    norm_before_gate: bool = True

    @property
    def variant(self) -> str:
        """Which comes first, and the dialect."""
        return f"{self.first}_{self.dialect.name}"

    @property
    def first(self) -> str:
        """Which comes first."""
        return "norm_then_gate" if self.norm_before_gate else "gate_then_norm"

    @property
    def weight_offset(self) -> None:
        """None: nobody stores its weight less one."""
        return

    @property
    def magnifies(self) -> float:
        """How many times as large as x what is normalised may be."""
        scale, offset = GATES[self.gate]
        return 1.0 if self.norm_before_gate or self.activation == "sigmoid" else 1.0 + offset + LARGEST_BELL * scale

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """The dialects that its op has in its dtype."""
        return dialects.HALF_GATES if self.dtype in HALF else dialects.SINGLE

    @property
    def settings(self) -> dict[str, Any]:
        """What the op is called with besides eps and its order."""
        return {"norm_before_gate": self.norm_before_gate, "activation": self.activation} | super().settings

    @property
    def drawn(self) -> dict[str, str]:
        """How its tensors are drawn, and what it is called with, in words."""
        return super().drawn | {"gate": self.gate}

    @property
    def activations(self) -> dict[str, str]:
        """x and the gate, with their dtypes."""
        return {"x": self.dtype, "gate": self.dtype}

    @property
    def has_fixture(self) -> bool:
        """Whether its golden values are stored: those of a few cases, in either order and every plain dialect."""
        return self.dialect.is_plain and self.name in STORED.get(self.dtype, ()) and prod(self.shape) <= FIXTURE_ELEMENTS

    def further_inputs(self, x: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """The gate."""
        scale, offset = GATES[self.gate]
        gate = (offset + scale * bell(random_words(self.id, "gate", seed, x.size))).reshape(x.shape)
        if self.gate == "negative":
            gate[..., ::8] = -1000.0
        if self.gate == "zeros":
            gate[..., ::2] = 0.0
        if self.gate == "nan":
            gate.reshape(-1, x.shape[-1])[:1, -1] = np.nan
        return {"gate": store(gate, self.dtype)}

    def parts(self, given: dict[str, np.ndarray]) -> dict[str, Any]:
        """The gate, where it stands, and its activation; and groups."""
        gate, is_silu = given["gate"].astype(np.float64), self.activation == "silu"
        return super().parts(given) | {"gated": Gated(gate, self.norm_before_gate, is_silu, ACTIVATIONS[self.activation])}


# What every dtype and dialect may show in its own way, in either order of the two.
GATED = (
    GatedProbe("random", "the formula itself: the gate and the norm the other way round, a gradient left out"),
    GatedProbe("sigmoid", "the SiLU where the sigmoid is asked for", activation="sigmoid"),
    GatedProbe("gate_negative", "a sigmoid that cancels, or the derivative of SiLU, where it is small", gate="negative"),
    GatedProbe("groups_of_8", "statistics of the whole row, or of another group", x=Draw(rows="uneven_groups"), group_size=8),
)
NORM_FIRST = (
    *GATED,
    GatedProbe("rows_near_eps", "eps outside the root, added twice, or left out", x=Draw(scale=sqrt(EPS_1E_5))),
)
GATE_FIRST = (*GATED, GatedProbe("rows_near_eps", "eps that is added before the gate makes the row small", gate="shrinks"))
# What one dialect shows for all.
VALUES = (GatedProbe("gate_large", "an exponential that overflows, and makes a NaN", gate="large"),)
# Faults of indexing, and of edges, which the dtype hardly changes.
EDGES = (
    GatedProbe("gate_zeros", "a gate of zero: y divided by it in the backward pass", gate="zeros"),
    GatedProbe("zero_rows", "a zero row: division by zero, a gradient of the gate", x=Draw(rows="zero_rows")),
    GatedProbe("gate_nan", "a NaN of the gate swallowed, or leaked into other rows", gate="nan"),
    GatedProbe("nan_row", "a NaN of x swallowed, or leaked into other rows", x=Draw(rows="nan_row")),
    GatedProbe("groups_of_1", "a group of a single feature", group_size=1),
    GatedProbe("groups_of_24", "a group that is the whole row", group_size=24),
    GatedProbe("sigmoid_groups_of_3", "the size of a group taken for their number", group_size=3, activation="sigmoid"),
    GatedProbe("rank_4", "an op that assumes two or three axes", shape=(2, 1, 3, 24)),
    GatedProbe("strided", "strides ignored: every second feature of x and dy", layout="strided"),
    GatedProbe("no_weight", "a weight made up where none is given", weight="absent"),
    GatedProbe("rows_257", "the last block of rows missing from dweight; an op that assumes three axes", shape=(257, 24)),
)
# Rows, and features, that are split over devices.
SPLIT = tuple(GatedProbe(**how) for how in SHARDED[:2])


def _table(dtype: DType, norm_before_gate: bool) -> Iterator[tuple[Dialect, GatedProbe]]:
    plain, *others = dialects.HALF_GATES if dtype in HALF else dialects.SINGLE
    probes = NORM_FIRST if norm_before_gate else GATE_FIRST
    for probe in probes + VALUES + SPLIT + (EDGES if dtype == "float32" else ()):
        yield plain, probe
    for dialect in others:
        for probe in probes if dialect.is_plain else probes[:1]:
            yield dialect, probe


def _case(dtype: DType, norm_before_gate: bool, dialect: Dialect, probe: GatedProbe) -> GatedNormCase:
    row = {name: getattr(probe, name) for name in GatedProbe.__dataclass_fields__}
    row["bias"] = False
    return GatedNormCase(**row, dialect=dialect, dtype=dtype, norm_before_gate=norm_before_gate)


GATED_NORM_CASES = tuple(
    _case(dtype, norm_before_gate, *row)
    for _ in GATED_NORMS
    for dtype in DTYPES
    for norm_before_gate in (True, False)
    for row in _table(dtype, norm_before_gate)
)
