"""The study `dialect`."""

from studies.dialect.claims import CLAIMS
from studies.dialect.measure import DTYPES, MODEL, SUBJECTS, measure, setups
from studies.dialect.picture import draw
from studies.figures import Figures, spread
from studies.study import Study, Table

METHOD = """\
*Then*, the MiniMind of 2025, is `impl_torch.rms_norm(…, order="cast_then_scale")`; *now*, that of 2026, is
`"scale_then_cast"` ([dialects](../spec.md)). A layer is given 256 rows of 512 normal deviates, and weights of one,
powers of two, 1 + 0.1·normal, or normal ones, in x's dtype or in float32. A power of two changes no digits, except
where the product is subnormal, which in float16 happens.

The model is a byte-level language model in MiniMind's make: 4 Pre-LN blocks, 64 wide, grouped-query attention with 4
heads and 2 for keys, rotary positions, SwiGLU, the embedding tied to the head. It is trained in float32, where both
orders compute the same, on windows of 64 bytes of the project's LICENSE without its last 2048 bytes; its weights are
then loaded into either order, in a dtype, and the loss is taken on these last bytes. It is small and learns little:
what counts is how far its loss moves."""


def tables(figures: Figures) -> tuple[Table, ...]:
    """The layer and the model."""
    layers = [
        (subject, dtype, spread(100 * figures.values("differ", **where)), spread(figures.values("ulps", **where)))
        for subject in SUBJECTS[:-1]
        for dtype in DTYPES
        if (where := {"subject": subject, "dtype": dtype, "weight_dtype": dtype})
    ]
    losses = ("loss_then", "loss_now", "loss_float32")
    models = [
        (
            dtype,
            spread(100 * figures.values("differ", subject=MODEL, dtype=dtype)),
            spread(figures.values("apart", subject=MODEL, dtype=dtype)),
            *(spread(figures.values(loss, subject=MODEL, dtype=dtype)) for loss in losses),
        )
        for dtype in DTYPES
    ]
    return (
        Table("A layer", ("weights", "dtype", "outputs that differ, %", "by at most, ulp"), layers),
        Table(
            "A trained model",
            ("dtype", "logits that differ, %", "apart, of their size", "loss then", "loss now", "loss in float32"),
            models,
        ),
    )


STUDY = Study(
    name="dialect",
    method=METHOD,
    columns={
        "subject": "a layer with such weights, or all norms of a trained model",
        "dtype": "the dtype of x, or of the model",
        "weight_dtype": "the dtype of the norm's weight",
        "steps": "of training; 0 where there is no model",
        "seed": "of torch's generator",
        "differ": "the share of outputs, rounded to x's dtype, that differ between the two orders",
        "apart": "the root mean square of the difference over that of the outputs",
        "ulps": "the largest difference, in ulps of x's dtype; null for a model",
        "dtype_then": "the dtype of the output, cast then scaled",
        "dtype_now": "the dtype of the output, scaled then cast",
        "loss_then": "the model's loss in this dtype, cast then scaled, in nats a byte; null where there is no model",
        "loss_now": "the same, scaled then cast",
        "loss_float32": "the same in float32",
    },
    setups=setups,
    measure=measure,
    claims=CLAIMS,
    tables=tables,
    caption="The share of outputs that differ between the cast orders, and what a trained model's loss moves by.",
    draw=draw,
)
