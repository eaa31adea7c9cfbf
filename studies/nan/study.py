"""The study `nan`."""

import re
from collections import Counter

import numpy as np

from studies.figures import Figures, Row, short, spread
from studies.nan.claims import CLAIMS, broken, counted, runs
from studies.nan.measure import LOWER, RATE, REMEDIES, measure, setups
from studies.nan.picture import draw
from studies.study import Study, Table


def tables(figures: Figures) -> tuple[Table, ...]:
    """What every remedy is worth; one NaN, layer by layer; the same model in three dtypes."""
    remedies = [(remedy, *_outcome(runs(figures, remedy))) for remedy in (*REMEDIES, "float32", "broad")]
    dtypes = [
        (
            f"{rows[0]['dtype']}, rate {short(rate)}",
            counted(rows),
            spread(100 * np.array([row["underflow"] for row in rows])),
            _loss(rows),
        )
        for rate in (RATE, LOWER)
        for name in ("none", "bfloat16", "float32")
        if (rows := figures.where(remedy=name, rate=rate))
    ]
    row = broken(runs(figures, "none"))[0]
    layers = [
        (str(layer), *(_cell(value) for value in (mean, std, low, high)), f"{100 * share:.3g}")
        for layer, (mean, std, low, high, share) in enumerate(row["statistics"])
    ]
    title = f"The step of the NaN without a remedy, seed {row['seed']}, after {row['survived']} steps"
    head = ("layer", "mean", "std", "min", "max", "not finite, %")
    return (
        Table("Every remedy alone, and all", ("remedy", "what became of it", "final loss", "first not finite"), remedies),
        Table(f"{title}: `{row['first']}` is the first", head, layers),
        Table("No remedy, by dtype", ("dtype", "what became of it", "gradients zero at first, %", "final loss"), dtypes),
    )


def _outcome(rows: list[Row]) -> tuple[str, str, str]:
    where = Counter(re.sub(r"^stack\.\d+", "", row["first"]).lstrip(".") for row in broken(rows))
    layers = sorted({row["layer"] for row in broken(rows) if row["weights_finite"]})
    named = ", ".join(f"`{name}`" + (f" ({count})" if len(where) > 1 else "") for name, count in where.items())
    return counted(rows), _loss(rows), named + (f"; layer {', '.join(map(str, layers))}" if layers else "")


def _loss(rows: list[Row]) -> str:
    final = [row["final"] for row in rows if row["final"] is not None]
    return spread(np.array(final)) if final else ""


def _cell(value: float | None) -> str:
    return "" if value is None else short(value)


METHOD = """\
The model is [dialect](dialect.md)'s, 16 layers deep and 32 wide: MiniMind's attention and SwiGLU on the bytes of the
project's LICENSE, trained by AdamW on 4 windows of 64 bytes a step. *Without a remedy* it has no norm, a rate of 0.01
from the first step, matrices drawn with GPT-2's deviation of 0.02, no clipping, and float16's autocast, without a
gradient scaler, which is not among the notes' remedies. Nothing of that is absurd: the rate is three times that of the
other studies.

Remedies: Pre-LN with RMSNorm; a rate of 0.001, reached in 20 steps; Kaiming's or Xavier's normal initialisation, with
the embedding that belongs to it; `clip_grad_norm_` at 1.0; bfloat16's autocast; and all of them, with Xavier. Besides:
no autocast (*float32*), and matrices drawn with a deviation of one (*broad*), as `torch.randn` does.

When a loss is not finite, the weights and the batch that the step began with are run again, in float32 and in the run's
dtype; `impl_torch.dump` keeps what every submodule returns, and the function behind `conformance locate` names
the first that is NaN or infinite ([locate](../locate.md)). Where that is the embedding, the step before has left NaN in
the weights: its loss was finite, its gradients were not. A layer is one block, from 0; its statistics are of what it
puts out. float16 ends at 65504.

It is SwiGLU that explodes (`feed_forward.act`): the product of two projections grows as the square of what they are
given, and without a norm nothing brings it back. That happens within one step, from layer to layer, which is why float32
and bfloat16, though they end at 3e38, come to it too. Matrices of Kaiming or Xavier begin about ten times as large as 0.02,
which suits layers in a row, and not 16 sums of products. AdamW divides by the size of the gradients: clipped ones make
steps as long as before. Where float16 takes small gradients for zero its runs go another way from the first step on."""

STUDY = Study(
    name="nan",
    method=METHOD,
    columns={
        "remedy": "which of the notes' remedies, or what is checked besides",
        "placement": "of the norm: none, pre",
        "init": "how matrices are drawn: small (a deviation of 0.02), Kaiming, Xavier, normal (a deviation of 1)",
        "rate": "AdamW's learning rate, after the warm-up",
        "warm_up": "the steps over which it rises",
        "clip": "the norm to which gradients are clipped; null where they are not",
        "dtype": "autocast's; float32 is without autocast",
        "steps": "the run is asked for, unless its loss is not finite before",
        "seed": "of torch's generator, which draws matrices and batches",
        "survived": "steps with a finite loss",
        "final": "the loss over the last 10 steps, in nats a byte; null where it turned NaN",
        "unigram": "the entropy of the text's bytes, each taken by itself, in nats",
        "underflow": "the share of zeros among the gradients of the layers' matrices in the first step; null if it is NaN",
        "loss": "the loss of every step, a list, up to the NaN",
        "peak": "the largest magnitude that any layer puts out, for every step before the NaN",
        "first": "the first activation, in data-flow order, that is not finite; null where there was no NaN",
        "layer": "the first layer that puts out NaN or infinity, from 0",
        "weights_finite": "whether all weights were finite when this step began",
        "in_float32": "what the same step in float32 has there, the largest magnitude; null where it is not finite either",
        "statistics": "of every layer in the step of the NaN: mean, std, min, max of what is finite; the share that is not",
        "layer_std": "the standard deviation of what every layer puts out, for every step, the last being that of the NaN",
    },
    setups=setups,
    measure=measure,
    claims=CLAIMS,
    tables=tables,
    caption="Deviations by layer up to the NaN, and for every remedy the steps survived and the loss; a point for every seed.",
    draw=draw,
)
