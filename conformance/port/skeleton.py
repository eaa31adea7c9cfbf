"""A port to begin with: it runs at once, and skips what is not written yet."""

from string import Template

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
    def $signature:
        """$sentence"""
        raise port.Skip("$reason")
''')
NORMS = {
    "rms_norm(self, x, weight, *, eps)": "x / sqrt(mean(x²) + eps) · weight; without weight if it is None.",
    "layer_norm(self, x, weight, bias, *, eps)": "(x - mean(x)) / sqrt(var(x) + eps) · weight + bias.",
}
OTHERS = {
    "batch_norm(self, x, weight, bias, *, running_mean, running_var, eps, **how)": "What spec.md says of BatchNorm.",
    "rope(self, x, *, position, base, interleaved)": "Every head's pairs of features, turned by their angles.",
    "attention(self, q, k, v, key_mask, *, causal)": "softmax(q · k / sqrt(d_head)) · v, head by head.",
    "swiglu(self, gate, up)": "gate · sigmoid(gate) · up.",
    "gelu(self, x, *, approximate)": "x · Φ(x), by erf; by tanh if it is approximate.",
    "pre_ln_block(self, x, parameters, k_cache, v_cache, mask, *, config, position)": "What spec.md says of the block.",
    "pre_ln_stack(self, x, parameters, mask, *, config, position, n_layers)": "Blocks whose parameters are named 0.…, 1.….",
}


def skeleton(name: str, file: str, *, block: bool) -> str:
    """The source of a port by that name, to be written to that file; with `block`, all other ops too."""
    ops = NORMS | (OTHERS if block else {})
    written = [OP.substitute(signature=each, sentence=ops[each], reason=NOT_WRITTEN) for each in ops]
    return PORT.substitute(name=name, file=file, ops="".join(written))
