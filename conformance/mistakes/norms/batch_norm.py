"""BatchNorm's own: whose statistics it normalises by, and how the running ones move."""

from collections.abc import Callable
from typing import Any

import numpy as np

from conformance.mistakes.mistake import BATCH, Mistake, Of, all_but, in_half
from conformance.mistakes.norms.precision import NO_NARROWER
from conformance.numbers.rounding import round_to
from conformance.ops.norms.anatomy import Norm
from conformance.ops.norms.batch_norm import BatchNormCase
from conformance.ops.norms.steps import Paths, Steps
from conformance.ops.norms.values import FEATURES, batch_axes, mean

Array = np.ndarray

ANOTHER_MOMENTUM = dict.fromkeys(all_but("float32"), "another momentum than 0.1 is asked for in float32 only")


def _in_training(norm: Any) -> bool:
    return norm.batch.updates


def _in_evaluation(norm: Any) -> bool:
    """Where the running statistics stand for the batch's."""
    return not norm.batch.updates


def _through_statistics(s: Steps, direct: Array, through_mean: Array, through_rstd: Array) -> Paths:
    """The paths that dx has in training, by the statistics that are at hand."""
    axes = batch_axes(s.x)
    return direct, -s.rstd * mean(s.g, axes), -s.rstd * s.x_hat * mean(s.g * s.x_hat, axes)


def _twice(old: Array, new: Array, momentum: float) -> Array:
    once = (1 - momentum) * old + momentum * new
    return (1 - momentum) * once + momentum * new


def _in_storage_dtype(norm: Norm) -> Callable[[Array, Array, float], Array]:
    assert norm.batch
    right = norm.batch.update

    def update(old: Array, new: Array, momentum: float) -> Array:
        return round_to(right(old, new, momentum).astype(np.float64), norm.case.dtype).astype(old.dtype)

    return update


MISTAKES = (
    Mistake(
        "running_var_biased",
        "the variance that runs is divided by R, the number of rows, as flax does it, not by R - 1",
        {"batch.correction": lambda rows: 1.0},
        "The running variance is too small by 1/R of the new share; y is right, until it is evaluated.",
        "tt-metal#55438, mlx#3817, tinygrad#807; right in flax, Keras and ONNX",
        BATCH,
    ),
    Mistake(
        "running_var_unbiased",
        "the variance that runs is divided by R - 1, as PyTorch does it, not by R, the number of rows",
        {"batch.correction": lambda rows: rows / (rows - 1)},
        "The running variance is too large by 1/R of the new share; y is right, until it is evaluated.",
        "a layer of PyTorch's taken for flax's or Keras's",
        BATCH,
    ),
    Mistake(
        "momentum_of_the_old",
        "momentum is taken for the share of the old running statistics, not of the new",
        {"batch.update": lambda old, new, momentum: momentum * old + (1 - momentum) * new},
        "Nine tenths of the running statistics are those of the last batch.",
        "torchvision#8250, oneflow#6055, ludwig#2100",
        BATCH,
    ),
    Mistake(
        "momentum_0.1",
        "momentum is hard-coded at 0.1",
        {"batch.momentum": BatchNormCase.momentum},
        "The running statistics follow at another pace than was asked for.",
        "torch's default, where another is asked for",
        BATCH,
        hidden=ANOTHER_MOMENTUM,
    ),
    Mistake(
        "running_not_updated",
        "the running statistics stay as they were",
        {"batch.update": lambda old, new, momentum: old},
        "Training looks right; evaluation normalises by what the layer was initialised with.",
        "aprender#2166; a momentum of zero: pretrained-models.pytorch#5",
        BATCH,
    ),
    Mistake(
        "running_replaced",
        "the running statistics are replaced by the batch's",
        {"batch.update": lambda old, new, momentum: new},
        "Evaluation depends on the last batch alone.",
        "planted: = for +=",
        BATCH,
    ),
    Mistake(
        "running_updated_twice",
        "the running statistics are updated twice",
        {"batch.update": _twice},
        "They follow nearly twice as fast as asked; y and the gradients are right.",
        "pytorch#96136: activation checkpointing runs the forward pass again",
        BATCH,
    ),
    Mistake(
        "running_var_is_std",
        "a standard deviation runs where the variance belongs",
        {"batch.kept": lambda var, eps: np.sqrt(var)},
        "Right where the variance is one.",
        "planted: the root taken too early",
        BATCH,
    ),
    Mistake(
        "running_var_is_rstd",
        "the reciprocal root runs where the variance belongs",
        {"batch.kept": lambda var, eps: 1 / np.sqrt(var + eps)},
        "What the backward pass is given is kept: right where the variance is one.",
        "torch/nn#567",
        BATCH,
    ),
    Mistake(
        "running_var_with_eps",
        "the variance that runs has eps in it, which evaluation adds again",
        {"batch.kept": lambda var, eps: var + eps},
        "Features near sqrt(eps) come out too small in evaluation; ordinary ones hide it.",
        "planted: var += eps, in place",
        BATCH,
    ),
    Mistake(
        "running_in_storage_dtype",
        "the running statistics are rounded to x's dtype",
        {"batch.update": Of(_in_storage_dtype)},
        "A small share of the new is lost to rounding: in bfloat16 they come to a halt.",
        "module.to(bfloat16), which takes the buffers along",
        BATCH,
        hidden=NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "batch_statistics_in_evaluation",
        "evaluation normalises by the batch's own statistics",
        {"batch.training": True},
        "What is predicted for a row depends on the rows beside it.",
        "a model left in training; pytorch#16793: running statistics that are not tracked",
        BATCH,
        where=_in_evaluation,
    ),
    Mistake(
        "running_statistics_in_training",
        "training normalises by the running statistics",
        {"batch.training": False},
        "No gradient passes through the statistics, and y is not normalised.",
        "a layer that was frozen, or built for inference",
        BATCH,
        where=_in_training,
    ),
    Mistake(
        "dx_through_running_statistics",
        "in evaluation dx passes through the statistics, which are constants",
        {"paths": _through_statistics},
        "y is right; dx lacks its mean and its share along x_hat.",
        "torch/nn#768",
        BATCH,
        where=_in_evaluation,
    ),
    Mistake(
        "layer_norm_for_batch_norm",
        "the statistics are a row's, over its features: this is LayerNorm",
        {"axes": FEATURES},
        "Features keep their means and sizes.",
        "planted: the other norm of the same library",
        BATCH,
    ),
    Mistake(
        "statistics_of_each_place",
        "the statistics are over the first axis alone, not over all but the features'",
        {"axes": Of(lambda norm: (-norm.x.ndim,))},
        "Every place of a sequence or an image has statistics of its own; an input of two axes hides it.",
        "a BatchNorm of vectors given sequences",
        BATCH,
    ),
)
