"""Mistakes in a Pre-LN block as people write it in PyTorch, under autograd."""

from tests.judge.written.torch_blocks import attention, backward, feed_forward, forward, norms, of_today, rotation, stream

FAULTS = (
    *attention.FAULTS,
    *rotation.FAULTS,
    *norms.FAULTS,
    *feed_forward.FAULTS,
    *stream.FAULTS,
    *of_today.FAULTS,
    *forward.FAULTS,
    *backward.FAULTS,
)
