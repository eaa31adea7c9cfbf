"""The shape that an answer must have before it can be judged."""

import numpy as np

from conformance.question.case import Case

Array = np.ndarray


def malformed(case: Case, outputs: dict[str, Array], asked: tuple[str, ...]) -> str:
    """What keeps the outputs from being judged at all, in words; empty if nothing does."""
    for name in asked:
        if name not in outputs:
            returned = ", ".join(sorted(outputs)) or "nothing"
            return f"output {name!r} is missing: the port returned {returned}"
        shape = outputs[name].shape
        if shape != case.output_shape(name):
            return f"{name} has shape {list(shape)}; expected {list(case.output_shape(name))}"
    return ""
