"""A case: one question to a port, and what every kind of question has."""

from typing import Any, Literal, Protocol

from conformance.numbers.rounding import DType
from conformance.question.dialects import Dialect

Layout = Literal[
    "contiguous",
    "permuted",
    "sliced",
    "strided",
    "expanded",
    "x_at_offset",
    "weight_at_offset",
    "weight_strided",
    "dy_at_offset",
    "dy_one_number",
    "residual_aliased",
    "sharded_rows",
    "sharded_features",
    "sharded_both",
    "rows_over_ranks",
    "features_over_ranks",
]
"""How tensors lie in memory: x and dy together, or the tensor named alone (`weight`: weight and bias).

A residual that is `aliased` is x: the same numbers in the same memory. `sharded` tensors are all of a case's, split over
devices: the first axis of those of rows, the last axis of every tensor that has features, or both. Those that are split
`over_ranks` are so too, and each part is a tensor of a process of its own, which has no other.
"""
Split = Literal["rows", "features"]
OVER_RANKS: dict[Split, Layout] = {"rows": "rows_over_ranks", "features": "features_over_ranks"}

DEVICES = 4  # that split the rows of a case, or its features; where both are split, two and two
FIXTURE_ELEMENTS = 1_000  # a case with a larger x is computed live and not stored


class Case(Protocol):
    """One question to a port: an op, a dtype, and inputs that follow from the case and a seed. Immutable, and its own key.

    `id` is a path, op/kind/dtype/name; `variant` names the function that is asked for, of those that go by the op's name, each
    of which a port may have code of its own for; `exposes` says in words which fault the case is about; `shape` is that of the
    first input; `settings` are the op's constants beside eps, order and offset; `weight_offset` is None where no norm has a
    weight.
    """

    @property
    def op(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def exposes(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def dialect(self) -> Dialect: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_offset(self) -> int | None: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def exact(self) -> bool:
        """Whether no honest implementation makes a rounding error, so that one number an element is admissible."""
        ...

    @property
    def drawn(self) -> dict[str, str]:
        """How its tensors are drawn and what it is called with, in words."""
        ...

    @property
    def traits(self) -> dict[str, bool]:
        """What may set it apart from others of its op, in words, and whether it does."""
        ...

    @property
    def has_fixture(self) -> bool:
        """Whether the case is small enough for its golden values to be stored."""
        ...

    @property
    def outputs(self) -> dict[str, str]:
        """What a port returns with its gradients, and the dtypes; the op's own output comes first."""
        ...

    @property
    def made(self) -> tuple[str, ...]:
        """The outputs that are no gradients."""
        ...

    def output_shape(self, output: str) -> tuple[int, ...]:
        """Shape of an output."""
        ...


def is_split(layout: str) -> bool:
    """Whether arrays are split over devices, all of a case's; how they lie in memory is then each device's own affair."""
    return bool(split(layout))


def split(layout: str) -> str:
    """What is split over devices, in one process or in several: `rows`, `features`, `both`; empty where tensors are whole."""
    return split_over_ranks(layout) or (layout.removeprefix("sharded_") if layout.startswith("sharded_") else "")


def split_over_ranks(layout: str) -> Split | None:
    """What is split over several processes; None where each tensor is whole, or is split within one process."""
    return next((split for split, its_layout in OVER_RANKS.items() if its_layout == layout), None)


def layouts(layout: str) -> dict[str, str]:
    """A case's layout, by the tensors that have it: it is that of x and dy, unless it begins with the tensor that alone has it.

    >>> layouts("strided")
    {'x': 'strided', 'dy': 'strided'}
    >>> layouts("weight_strided")
    {'weight': 'strided', 'bias': 'strided'}
    """
    if layout == "contiguous" or is_split(layout):
        return {}
    alone, _, of_one = layout.partition("_")
    tensors = {"x": ("x",), "weight": ("weight", "bias"), "dy": ("dy",), "residual": ("residual",)}.get(alone)
    return dict.fromkeys(tensors, of_one) if tensors else dict.fromkeys(("x", "dy"), layout)
