"""A case: one question to a port, and what every kind of question has."""

from typing import Any, Literal, Protocol, get_args

from conformance.numbers.rounding import DType
from conformance.question.dialects import Dialect

Op = Literal["rms_norm", "layer_norm", "batch_norm", "rope", "attention", "swiglu", "gelu", "pre_ln_block", "pre_ln_stack"]
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
]
"""How tensors lie in memory: x and dy together, or the tensor named alone (`weight`: weight and bias)."""

OPS: tuple[Op, ...] = get_args(Op)
TAPPED: tuple[Op, ...] = ("pre_ln_block", "pre_ln_stack")  # ops whose intermediates a port may export
FIXTURE_ELEMENTS = 1_000  # a case with a larger x is computed live and not stored


class Case(Protocol):
    """One question to a port: an op, a dtype, and inputs that follow from the case and a seed. Immutable, and its own key.

    `id` is a path, op/kind/dtype/name; `exposes` says in words which fault the case is about; `shape` is that of the first
    input; `settings` are the constants of an op that is no norm; `weight_offset` is None where there is no norm's weight.
    """

    @property
    def op(self) -> Op: ...
    @property
    def id(self) -> str: ...
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
