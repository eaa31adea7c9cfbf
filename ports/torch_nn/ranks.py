"""torch.nn's norms on several ranks: of DTensors, which find out by themselves what to sum, in eager mode."""

import impl_torch.port
from ports.torch_nn import port


class DTensors(impl_torch.port.OnDTensors, port.Port):
    """The norms, forward and gradients; BatchNorm gathers x."""

    name = "torch.nn, DTensor"
    may_fail = {  # noqa: RUF012
        "rms_norm/*16/*.rows": "a part's dweight is rounded to half precision, and then summed (pytorch#190626)",
        "batch_norm/*16/*": f"{port.STRIDED}; where DTensor gathers x, it lies otherwise",
        "rms_norm/*.features": "eps is added in place to a mean that is partial where parts are even, which DTensor refuses",
    }
