"""How a port's method is called, and what its results are: arguments by place and name, cotangents, gradients by name."""

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

from conformance.ops.op import Constant
from conformance.ops.table import OPS
from conformance.port.protocol import Call


def arranged(call: Call, given: dict[str, Any]) -> tuple[tuple, Any, dict[str, Any]]:
    """The tensors of a call by place, the cotangent or a tuple of them, and the tensors that are passed by name."""
    op, names = OPS[call.op], _by_place(call, given)
    others = {name: tensor for name, tensor in given.items() if name not in (*names, *op.cotangents)}
    inputs = tuple(others if name == "parameters" else given.get(name) for name in names)
    cotangents = tuple(given[name] if name in call.cotangents else None for name in op.cotangents)
    return inputs, cotangents[0] if len(cotangents) == 1 else cotangents, {} if "parameters" in names else others


def named(call: Call, given: dict[str, Any], y: Any, gradients: tuple) -> dict[str, Any]:
    """What an op, and its `vjp`, returned: what was asked for, by name. Raises `ValueError` where some of it is missing."""
    made = [name for name in call.asked if name not in call.gradients]
    returned = y if isinstance(y, tuple) else (y,)
    if made and len(returned) != len(made):
        raise ValueError(f"{call.op} returned {len(returned)} outputs, and not {len(made)}: {', '.join(made)}")
    outputs: dict[str, Any] = dict(zip(made, returned, strict=True)) if made else {}
    for name, gradient in zip(_by_place(call, given), gradients, strict=bool(call.gradients)):
        each = gradient if isinstance(gradient, dict) else {name: gradient}
        outputs |= {f"d{name}": of_one for name, of_one in each.items()}
    missing = [name for name in call.asked if outputs.get(name) is None]
    if missing and missing[0] in call.gradients:
        raise ValueError(f"{call.op} gave no gradient {missing[0]}: its y does not depend on {missing[0].removeprefix('d')}")
    if missing:
        raise ValueError(f"{call.op} gave no output {missing[0]!r}")
    return {name: outputs[name] for name in call.asked}


def _by_place(call: Call, given: dict[str, Any]) -> list[str]:
    """The names of the tensors that are passed by place."""
    op = OPS[call.op]
    absent = {tensor.name for tensor in op.tensors if tensor.sometimes} - given.keys()
    return [name for name in op.arguments if name not in absent]


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
