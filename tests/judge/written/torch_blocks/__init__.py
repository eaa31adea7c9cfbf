"""Mistakes in a Pre-LN block as people write it in PyTorch, under autograd."""

from tests.judge.written.torch_blocks import attention

FAULTS = attention.FAULTS
