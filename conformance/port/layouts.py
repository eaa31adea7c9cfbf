"""How NumPy's arrays lie in memory as a case asks for it."""

import numpy as np


def strided(tensor: np.ndarray, layout: str) -> np.ndarray | None:
    """The same values, otherwise laid out; None for a layout that is not known."""
    match layout:
        case "permuted":
            return np.swapaxes(np.swapaxes(tensor, -1, -2).copy(), -1, -2)
        case "sliced":
            return np.pad(tensor, [(0, 0)] * (tensor.ndim - 1) + [(3, 4)])[..., 3:-4]
        case "strided":
            return np.repeat(tensor, 2, axis=-1)[..., ::2]
        case "expanded":
            return np.broadcast_to(_before_zeros(tensor[:1], tensor), tensor.shape)
        case "at_offset":
            return np.pad(tensor, [(1, 1)] + [(0, 0)] * (tensor.ndim - 1))[1:-1]
        case "aliased":
            return tensor.view()
        case "one_number":
            return np.broadcast_to(_before_zeros(tensor[(slice(1),) * tensor.ndim], tensor), tensor.shape)
        case _:
            return None


def _before_zeros(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The first part of a tensor, in a memory as large as the whole one's, with zeros behind it: nothing to be read there."""
    memory = np.zeros_like(whole)
    place = tuple(slice(size) for size in part.shape)
    memory[place] = part
    return memory[place]
