"""How a port's method is called: the keywords it takes, what of its outputs is differentiated, where gradients belong."""

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

from conformance.ops.op import Constant


def differentiated(values: Any, cotangents: tuple) -> Any:
    """Of an op's outputs, or of their cotangents, those whose cotangent is there: one, or a tuple of several."""
    pairs = zip(values if isinstance(values, tuple) else (values,), cotangents, strict=False)
    kept = [value for value, cotangent in pairs if cotangent is not None]
    return tuple(kept) if len(kept) > 1 else kept[0]


def takes(function: Callable[..., Any], constant: Constant) -> bool:
    """Whether a function takes a constant as a keyword; one that says nothing of itself takes any that need not be explicit."""
    try:
        parameters = signature(function).parameters
    except ValueError:
        return not constant.explicit
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
    return constant.name in parameters or (takes_any and not constant.explicit)


def placed(inputs: tuple, places: Sequence[tuple[int, str | None]], values: Sequence[Any]) -> tuple:
    """The inputs with other values in their places, one by one, those of dictionaries included."""
    placed: list[Any] = [{} if isinstance(each, dict) else None for each in inputs]
    for (place, name), value in zip(places, values, strict=True):
        if name is None:
            placed[place] = value
        else:
            placed[place][name] = value
    return tuple(placed)
