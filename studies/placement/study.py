"""The study `placement`."""

from collections.abc import Iterator

import numpy as np

from studies.figures import Figures, Row, short
from studies.placement.claims import CLAIMS, depths, drawn, rates, trained, warm_ups
from studies.placement.measure import DEEP, INITS, MODELS, SHALLOW, measure, setups
from studies.placement.picture import draw
from studies.study import Study, Table


def tables(figures: Figures) -> tuple[Table, ...]:
    """How the runs ended, by depth, and the gradients of the models as they are drawn."""
    gradients = [
        (model, init, *(f"{_median(drawn(figures, 0, *at))} … {_median(drawn(figures, -1, *at))}" for at in its))
        for model in MODELS
        for init in INITS
        if (its := [(model, layers, init) for layers in depths(figures)])
    ]
    head = ("model", "drawn", *(f"{layers} layers" for layers in depths(figures)))
    ended = (_ended(figures, layers) for layers in (SHALLOW, DEEP))
    return (*ended, Table("Gradients as drawn, of the first layer … of the last; medians", head, gradients))


def _ended(figures: Figures, layers: int) -> Table:
    body: list[tuple[str, ...]] = []
    for model in MODELS:
        for warm_up in warm_ups(figures, layers):
            runs = (trained(figures, layers, model=model, rate=rate, warm_up=warm_up) for rate in rates(figures, layers))
            body.append((model, str(warm_up), *("; ".join(_endings(its)) for its in runs)))
    head = ("model", "warm-up", *(f"rate {short(rate)}" for rate in rates(figures, layers)))
    return Table(f"{layers} layers: the loss at the end, seed by seed; struck out where it does not learn", head, body)


def _endings(runs: list[Row]) -> Iterator[str]:
    for run in runs:
        final = "not finite" if run["final"] is None else short(run["final"])
        yield final if run["outcome"] == "learns" else f"~~{final}~~"


def _median(values: np.ndarray) -> str:
    return short(float(np.median(values))) if np.all(np.isfinite(values)) else "not finite"


METHOD = """\
The models are byte-level language models in MiniMind's make, 64 wide: grouped-query attention with 4 heads and 2 for
keys, rotary positions, SwiGLU, the embedding tied to the head. They differ in their norms: Pre-LN is
`impl_torch.PreLNStack` with RMSNorm or LayerNorm and a norm behind it; Post-LN is the same stack with LayerNorm placed
after every sum, x ← norm(x + sublayer(x)); the fourth has none. Models of one seed begin with the same matrices and
see the same text.

Matrices are drawn as Xiong et al. draw them, by Xavier (normal; Glorot & Bengio, AISTATS 2010), the embedding with a
deviation of 1/√64, times √64 at the input; or *small*, all with a deviation of 0.02, as GPT-2 and Llama draw them. A
gradient as drawn is the norm of the gradient by a layer's `feed_forward.down`, the matrix that the paper's first
theorem is about, for one batch.

Training is 120 steps of AdamW (float32, one thread) on 8 windows of 32 bytes of the project's LICENSE, with a constant
rate, or one that rises linearly over the first 60 steps (80 and 40 in a quick run). A model *learns* where losses and
gradients stay finite and the mean loss of the last 20 steps is below 0.9 of the entropy of the text's single bytes
(2.74 of 3.04 nats), which is what a model can reach that looks at nothing; the largest rate is the largest asked at
which most seeds learn. A few trials set the rates and the number of steps; the bound came before them. It is a short
training of small models: what learns at no rate here may learn in more time, or with a rate that falls. Unless it is
said otherwise, what is trained was drawn by Xavier. Gradients while training are of the whole model, and are not
clipped."""

STUDY = Study(
    name="placement",
    method=METHOD,
    columns={
        "model": "where its norms are, and which",
        "init": "how matrices are drawn: by Xavier, or all with a deviation of 0.02 (small)",
        "layers": "how many blocks",
        "steps": "of training; 0 where gradients are measured as the model is drawn",
        "rate": "AdamW's learning rate",
        "warm_up": "over how many steps the rate rises to it",
        "seed": "of torch's generator, which draws weights and text",
        "outcome": "learns, does not learn, or not finite; null where it is not trained",
        "final": "the mean loss of the last 20 steps, in nats a byte; null where it is not finite, or not trained",
        "losses": "the mean loss of every 5 steps, a list; null from where it is not finite",
        "gradients": "the mean norm of the gradient of every 5 steps, a list; null from where it is not finite",
        "by_layer": "where it is not trained, the norm of the gradient by every layer's last matrix; null where not finite",
    },
    setups=setups,
    measure=measure,
    claims=CLAIMS,
    tables=tables,
    caption="Loss curves of the four models by depth, rate and warm-up; their gradients; and the largest rate of each.",
    draw=draw,
)
