"""The tensors of a composite op's case, from raw bits with exact arithmetic, as the norms' are."""

from functools import lru_cache

import numpy as np

from conformance.numbers.draws import bell, random_words, signed_weights
from conformance.numbers.rounding import store
from conformance.ops.block.case import CompositeCase

Array = np.ndarray


def composite_inputs(case: CompositeCase, seed: int) -> dict[str, Array]:
    """Inputs, parameters, cache and mask of a case, and the cotangents of its outputs, in the case's dtype."""

    def draw(name: str, shape: tuple[int, ...]) -> Array:
        return bell(random_words(case.id, name, seed, int(np.prod(shape)))).reshape(shape)

    tensors: dict[str, Array] = {}
    for name, shape in (case.inputs | case.constants).items():
        kind = name.rpartition(".")[2]
        if name == "key_mask":
            tensors[name] = _key_mask(case)
        elif kind == "weight" and len(shape) == 1:
            words = random_words(case.id, name, seed, shape[0])
            tensors[name] = signed_weights(words) - case.config.offset_of(name)
        elif kind == "weight":
            tensors[name] = draw(name, shape) / np.sqrt(shape[-1])
        elif kind in ("x", "gate", "up"):
            tensors[name] = case.x.offset + case.x.scale * draw(name, shape)
        else:
            tensors[name] = draw(name, shape)
        if kind == "sink":
            tensors[name] = tensors[name] + case.deep * (np.arange(*shape) % 2)
        if name == "q" or name.endswith("attention.q.weight"):
            tensors[name] = case.hot * tensors[name]
        if name.endswith(("feed_forward.gate.weight", "feed_forward.up.weight")):
            tensors[name] = case.wide * tensors[name]
    for output in case.returned:
        if output.cotangent:
            tensors[f"d{output.name}"] = draw(f"d{output.name}", case.output_shape(output.name))
    return {name: store(tensor, case.dtype) for name, tensor in tensors.items()}


@lru_cache(maxsize=64)  # a case's runs follow one another, and all read the same
def exact_inputs(case: CompositeCase, seed: int) -> tuple[dict[str, Array], Array]:
    """A case's inputs and constants, and the cotangent of its output, in float64; not to be written to."""
    exact = {name: tensor.astype(np.float64) for name, tensor in composite_inputs(case, seed).items()}
    [output] = case.returned
    return exact, exact.pop(f"d{output.name}")


def _key_mask(case: CompositeCase) -> Array:
    """One where a key may be attended to, zero where it is padding."""
    mask = np.ones(case.constants["key_mask"])
    if case.key_mask == "padding":
        mask[-1, -2:] = 0.0
    else:
        mask[0, : case.past + 1] = 0.0
    return mask
