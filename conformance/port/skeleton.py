"""A port to begin with: it runs at once, and skips what is not written yet."""

from string import Template

from conformance.ops.norms.cases import ROW_NORMS
from conformance.ops.table import OPS
from conformance.port.base import NOT_WRITTEN

PORT = Template('''\
"""What $name makes of the norms: `conformance run $file`."""

import numpy as np
from conformance import port


class Port(port.Port):
    """The layers of $name. What raises Skip is not judged."""

    name = "$name"
    dtypes = ("float64", "float32", "bfloat16", "float16")  # strike what it lacks
    # orders = ("cast_then_scale",)  # `conformance identify $file` tells

    def versions(self):
        """What a report names, such as {"torch": torch.__version__}."""
        return {}

    def to_tensor(self, array):
        """A NumPy array, bfloat16 as ml_dtypes has it, to a tensor of its dtype."""
        return array

    def to_numpy(self, tensor):
        """A tensor to a NumPy array of its dtype."""
        return np.asarray(tensor)
$ops
    # Until this is written, y alone is judged.
    # def gradients(self, function, tensors, dy):
    #     """y = function(*tensors), and the gradients of sum(y · dy) for each tensor."""
    #     return y, [...]
''')
OP = Template('''
    def $definition:
        """$sentence"""
        raise port.Skip("$reason")
''')
LINE = 88  # characters, as formatters have it


def skeleton(name: str, file: str, *, block: bool) -> str:
    """The source of a port by that name, to be written to that file; with `block`, all other ops too."""
    ops = OPS.values() if block else [OPS[each] for each in ROW_NORMS]
    written = [OP.substitute(definition=_wrapped(op.signature), sentence=op.formula, reason=NOT_WRITTEN) for op in ops]
    return PORT.substitute(name=name, file=file, ops="".join(written))


def _wrapped(signature: str) -> str:
    """A method's name and parameters, in a line, or each in its own where the line would be too long."""
    name, _, parameters = signature.removesuffix(")").partition("(")
    if len(f"    def {signature}:") <= LINE:
        return signature
    return "\n        ".join((f"{name}(", *(f"{each}," for each in parameters.split(", ")))) + "\n    )"
