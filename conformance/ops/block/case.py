"""A case of a composite op: what every such case has, and how it is asked in several dtypes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from conformance.numbers.rounding import DTYPES, HALF, DType
from conformance.ops.draw import Draw
from conformance.ops.op import Output
from conformance.question.case import Layout
from conformance.question.dialects import Dialect
from reference import FEATURES, PRESETS, BlockConfig, small

KeyMask = Literal["absent", "padding", "hides_a_row"]
TRAITS = {
    "window": "there is a window",
    "sink": "heads have sinks",
    "softcap": "scores are capped",
    "attention_scale": "a scale is given",
    "rotary_features": "a part of each head is turned",
    "qk_norm_over": "queries and keys are normalised over all heads",
    "qk_norm_offset": "the norms of queries and keys have no offset",
    "placement": "norms stand elsewhere",
    "norm_bias": "LayerNorms have no bias",
}
"""What each of `FEATURES` is, in words."""
Y = Output("y")


@dataclass(frozen=True)
class CompositeCase(ABC):
    """A question about a composite op, of a `kind`, such as a preset: what of the config the op needs, and its sizes.

    Every op has a class of its own, which says what it reads. `s` positions after `past` cached ones, the first of them at
    `position` + `past`. `hot` scales the queries' weights, or the queries, and so the scores; `wide` scales the weights of
    gate and up; `deep` is added to every other head's sink. The key mask leaves the last keys of the last sequence out
    (`padding`), or the first keys of the first sequence, so that its first query sees none (`hides_a_row`).
    """

    kind: str
    name: str
    exposes: str
    config: BlockConfig
    dtype: DType = "float32"
    batch: int = 2
    s: int = 7
    past: int = 0
    position: int = 0
    key_mask: KeyMask = "absent"
    x: Draw = field(default_factory=Draw)
    hot: float = 1.0
    wide: float = 1.0
    deep: float = 0.0
    n_layers: int = 1
    layout: Layout = "contiguous"
    op: str = field(default="", init=False)
    known: ClassVar[tuple[str, ...]] = ()
    """Of `FEATURES`, those that the op can have."""

    @property
    def id(self) -> str:
        """The path that names the case."""
        return f"{self.op}/{self.kind}/{self.dtype}/{self.name}"

    @property
    def variant(self) -> str:
        """None to speak of: a config is an argument of one function."""
        return ""

    @property
    def returned(self) -> tuple[Output, ...]:
        """The op's own outputs."""
        return (Y,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x, or of the first of an op's inputs."""
        return self.inputs[next(iter(self.inputs))]

    @cached_property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """What is differentiated, by name and shape."""
        return self.input_shapes()

    @abstractmethod
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The op's own inputs, then the parameters, each with its shape."""

    @property
    def constants(self) -> dict[str, tuple[int, ...]]:
        """The tensors that are not differentiated, by name and shape."""
        return {} if self.key_mask == "absent" else {"key_mask": (self.batch, self.past + self.s)}

    @property
    def outputs(self) -> dict[str, str]:
        """The op's own outputs, and the gradient of every input."""
        gradients = dict.fromkeys((f"d{name}" for name in self.inputs), self.dtype)
        return {output.name: output.dtype(self) for output in self.returned} | gradients

    @property
    def made(self) -> tuple[str, ...]:
        """The outputs that are no gradients."""
        return tuple(output.name for output in self.returned)

    def output_shape(self, output: str) -> tuple[int, ...]:
        """Shape of an output: a gradient's is that of its input."""
        return self.inputs.get(output[1:], self.shape)

    @property
    def has_fixture(self) -> bool:
        """Whether golden values are stored: in float32, or of the plain case; of one that not every block has, they are not."""
        return (self.dtype == "float32" or self.name == "random") and not self.features

    @property
    def exact(self) -> bool:
        """No: its sums are rounded."""
        return False

    @property
    def drawn(self) -> dict[str, str]:
        """How x is drawn, and the config, in words."""
        return {"x": f"{self.x}", "config": ", ".join(f"{name} {value}" for name, value in described(self.config).items())}

    @property
    def traits(self) -> dict[str, bool]:
        """What may set it apart from others of its op, in words, and whether it does."""
        traits = {"keys are cached": self.past > 0, "there is a key mask": self.key_mask != "absent"}
        return traits | {said: name in self.features for name, said in TRAITS.items()}

    @property
    def features(self) -> dict[str, Any]:
        """What the op has that a plain one has not, by the config's fields."""
        return {name: value for name, value in self.config.features.items() if name in self.known}

    @property
    def dialect(self) -> Dialect:
        """None to speak of: no norm is in it."""
        return Dialect("either_order")

    @property
    def eps(self) -> float:
        """The norms'."""
        return self.config.eps

    @property
    def weight_offset(self) -> int | None:
        """The norms', where there are any."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """The op's constants, by the names that a port is given them."""
        return {}


def described(config: BlockConfig) -> dict[str, Any]:
    """A config as data: of `FEATURES`, those alone that it has, so that a port need not know the others."""
    return {name: value for name, value in asdict(config).items() if name not in FEATURES or name in config.features}


def in_dtypes(
    every: Iterable[CompositeCase],
    not_float64: Iterable[CompositeCase] = (),
    float32: Iterable[CompositeCase] = (),
    half: Iterable[CompositeCase] = (),
) -> Iterator[CompositeCase]:
    """The cases of an op, dtype by dtype: those asked in every one, in all but float64, in float32, and in half precision."""
    for dtype in DTYPES:
        rows = [*every, *(not_float64 if dtype != "float64" else ())]
        rows += [*(float32 if dtype == "float32" else ()), *(half if dtype in HALF else ())]
        yield from (replace(case, dtype=dtype) for case in rows)


def sized(config: BlockConfig) -> BlockConfig:
    """A preset in its small size, with the eps nearest to its own that every dtype but the half ones has."""
    return replace(small(config), eps=float(np.float32(config.eps)))


LLAMA, GPT2, GEMMA3, GPT_OSS, GLM4, PHI = (
    sized(PRESETS[name]) for name in ("llama", "gpt2", "gemma3", "gpt_oss", "glm4", "phi")
)
GEMMA2, OLMO2, COHERE, POST_LN, NO_NORM = (sized(PRESETS[name]) for name in ("gemma2", "olmo2", "cohere", "post_ln", "no_norm"))
MULTI_HEAD = replace(LLAMA, n_kv_heads=4)
MULTI_QUERY = replace(LLAMA, n_kv_heads=1)
INTERLEAVED = replace(LLAMA, rope="interleaved")
GELU, GELU_TANH = replace(GPT2, feed_forward="gelu"), GPT2
