"""What kernels get wrong with lanes, blocks and roundings: the catalogue's numbers are those of the fault written by hand."""

import numpy as np
import pytest

from conformance.judging.compare import compare
from conformance.judging.simulation import numbers
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import both
from conformance.numbers.rounding import HALF, store
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import true_norm
from conformance.ops.norms.cases import NormCase
from conformance.ops.op import BACKWARDS

Array = np.ndarray
BY_ID = {mistake.id: mistake for mistake in MISTAKES}


def case_of(op: str, name: str, dtype: str = "float32", order: str = "either_order") -> NormCase:
    (case,) = select(f"{op}/{order}/{dtype}/{name}")
    assert isinstance(case, NormCase)
    return case


def exact(case: NormCase) -> dict[str, Array]:
    return {name: array.astype(np.float64) for name, array in golden(case).inputs.items()}


def value(id_: str, case: NormCase, output: str = "y") -> Array:
    return BY_ID[id_].outputs(case)[output].value


def as_a_kernel(case: NormCase, width: int, past_the_end: float | None) -> Array:
    """y as a kernel writes it that gives every row so many lanes: past its end they read a constant, or what is in memory."""
    given, n = exact(case), case.shape[-1]
    memory = np.concatenate([given["x"].ravel(), np.zeros(width)])
    weight, bias = given["weight"], given.get("bias", np.zeros(n))
    y = np.zeros(case.shape)
    for row, out in enumerate(y.reshape(-1, n)):
        lanes = memory[row * n : row * n + width].copy()
        if past_the_end is not None:
            lanes[n:] = past_the_end
        mean = lanes.sum() / n if case.op == "layer_norm" else 0.0
        rstd = 1 / np.sqrt(np.sum((lanes - mean) ** 2) / n + case.eps)
        out[:] = weight * (lanes[:n] - mean) * rstd + bias
    return y


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize(("end", "widths"), [("", (64, 128)), ("_128", (128, 128)), ("_1024", (1024, 1024))])
def test_lanes_past_the_end_of_a_row(op, end, widths):
    for name, width in zip(("random", "width_127"), widths, strict=True):
        case = case_of(op, name)
        ids = {"tail_not_masked": None, "padding_of_ones": 1.0, "padding_in_variance": 0.0}
        for id_, past_the_end in ids.items():
            if op in BY_ID[id_ + end].ops:
                np.testing.assert_allclose(value(id_ + end, case), as_a_kernel(case, width, past_the_end), rtol=1e-12)


def in_blocks(case: NormCase, size: int, share: str) -> Array:
    """LayerNorm in a loop over blocks, of which only the first, only the last, or each by itself makes the statistics."""
    given, n = exact(case), case.shape[-1]
    y = np.zeros(case.shape)
    starts = range(0, n, size)
    for x, out in zip(given["x"].reshape(-1, n), y.reshape(-1, n), strict=True):
        blocks = [x[start : start + size] for start in starts]
        for start in starts:
            block = {"first": blocks[0], "last": blocks[-1], "each": x[start : start + size]}[share]
            count = len(block) if share == "each" else n
            mean = block.sum() / count
            rstd = 1 / np.sqrt(np.sum((block - mean) ** 2) / count + case.eps)
            out[start : start + size] = (x[start : start + size] - mean) * rstd
    return given["weight"] * y + given["bias"]


@pytest.mark.parametrize("share", ["first", "last", "each"])
@pytest.mark.parametrize(("size", "name"), [(32, "random"), (32, "width_129"), (128, "width_129"), (128, "width_768")])
def test_statistics_of_blocks(share, size, name):
    case = case_of("layer_norm", name)
    np.testing.assert_allclose(value(f"statistics_of_{share}_{size}", case), in_blocks(case, size, share), rtol=1e-12)


def test_the_gradient_of_a_row_in_blocks_is_that_of_rows_of_their_own():
    wide, narrow = case_of("layer_norm", "width_768"), case_of("layer_norm", "width_768")
    x, dy, weight = (exact(wide)[name] for name in ("x", "dy", "weight"))
    blocks = x.reshape(-1, 6, 128)
    off = blocks - blocks.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt(np.mean(off**2, -1, keepdims=True) + narrow.eps)
    x_hat, g = off * rstd, (dy * weight).reshape(-1, 6, 128)
    dx = rstd * (g - g.mean(-1, keepdims=True) - x_hat * np.mean(g * x_hat, -1, keepdims=True))
    for backward in BACKWARDS:
        made = BY_ID["statistics_of_each_128"].outputs(wide, 0, backward)["dx"].value
        np.testing.assert_allclose(made.reshape(dx.shape), dx, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("past_the_end", [0.0, 1.0])
def test_the_gradient_of_padding_is_that_of_finite_differences(op, past_the_end):
    """With eps of float64, central differences are good to eight digits or so."""
    case = case_of(op, "random", "float64")
    id_ = {0.0: "padding_in_variance", 1.0: "padding_of_ones"}[past_the_end]
    given = exact(case)

    def loss(x: Array) -> float:
        padded = np.concatenate([x, np.full(64 - 33, past_the_end)])
        mean = padded.sum() / 33 if op == "layer_norm" else 0.0
        y = given["weight"] * (x - mean) / np.sqrt(np.sum((padded - mean) ** 2) / 33 + case.eps)
        return float(np.sum(y * given["dy"][0, 0]))

    x, step = given["x"][0, 0], 1e-5
    differences = [(loss(x + step * one) - loss(x - step * one)) / (2 * step) for one in np.eye(33)]
    if op in BY_ID[id_].ops:
        np.testing.assert_allclose(value(id_, case, "dx")[0, 0], differences, rtol=1e-6, atol=1e-8)


def test_a_block_narrower_than_the_row_sees_and_writes_nothing_else():
    case = case_of("layer_norm", "random")
    made = {name: expected.value for name, expected in BY_ID["row_cut_at_32"].outputs(case).items()}
    assert all(not np.any(array[..., 32:]) and np.all(array[..., :32]) for array in made.values())
    given = exact(case)
    x, g = given["x"][..., :32], (given["dy"] * given["weight"])[..., :32]
    mean = x.sum(-1, keepdims=True) / 33
    rstd = 1 / np.sqrt(np.sum((x - mean) ** 2, -1, keepdims=True) / 33 + case.eps)
    x_hat = (x - mean) * rstd
    projection = x_hat * np.sum(g * x_hat, -1, keepdims=True) / 33
    np.testing.assert_allclose(made["dx"][..., :32], rstd * (g - g.sum(-1, keepdims=True) / 33 - projection), rtol=1e-9)
    np.testing.assert_allclose(made["dweight"][:32], np.sum(given["dy"][..., :32] * x_hat, (0, 1)), rtol=1e-12)


def test_columns_past_the_last_whole_block_are_not_written():
    case = case_of("layer_norm", "width_7")
    made = BY_ID["columns_past_4_not_written"].outputs(case)
    for name in ("y", "dx"):
        right = golden(case).outputs[name].value
        np.testing.assert_allclose(made[name].value, np.where(np.arange(7) < 4, right, 0), rtol=1e-9)


def test_an_odd_row_spoils_the_first_element_of_the_next():
    for name, odd in (("width_7", True), ("width_768", False)):
        case = case_of("rms_norm", name)
        y, right = value("next_row_spoilt", case).reshape(-1, case.shape[-1]), golden(case).outputs["y"].value
        expected = right.reshape(y.shape).copy()
        expected[1:, 0] *= not odd
        np.testing.assert_allclose(y, expected, rtol=1e-9)


def test_padded_rows_are_counted():
    case = case_of("layer_norm", "random")  # six rows, made eight
    terms = exact(case)["dy"].reshape(-1, 33)
    repeated, wrapped = (
        BY_ID[id_].outputs(case)["dbias"].value for id_ in ("dweight_repeats_last_row_8", "dweight_wraps_rows_8")
    )
    np.testing.assert_allclose(repeated, terms.sum(0) + 2 * terms[-1], rtol=1e-12)
    np.testing.assert_allclose(wrapped, terms.sum(0) + terms[0] + terms[1], rtol=1e-12)
    assert BY_ID["dweight_wraps_rows_8"].outputs(case_of("layer_norm", "rows_0"))["dbias"].value.tolist() == [0.0] * 33


@pytest.mark.parametrize("parts", ["halves", "lanes", "32"])
def test_welford_without_its_delta_adds_up_the_variances_of_parts(parts):
    case = case_of("layer_norm", "width_129")
    given, n = exact(case), 129
    x = given["x"]
    members = {
        "halves": [slice(0, 65), slice(65, n)],
        "lanes": [slice(lane, n, 32) for lane in range(32)],
        "32": [slice(start, start + 32) for start in range(0, n, 32)],
    }[parts]
    squares = np.sum([np.var(x[..., part], axis=-1, keepdims=True) * x[..., part].shape[-1] for part in members], axis=0)
    rstd = 1 / np.sqrt(squares / n + case.eps)
    y = given["weight"] * (x - x.mean(-1, keepdims=True)) * rstd + given["bias"]
    np.testing.assert_allclose(value(f"welford_without_delta_{parts}", case), y, rtol=1e-10, atol=1e-12)


def cut_off(x: Array) -> Array:
    """bfloat16 as a shift makes it: the upper half of a float32."""
    return (x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("order", ["scale_then_cast", "cast_then_scale"])
def test_outputs_that_are_cut_off_lie_in_the_intervals_of_that(order):
    """Computed in float32, noise and all; and the golden's own intervals do not hold them."""
    case = case_of("layer_norm", "random", "bfloat16", order)
    norm = true_norm(case, 0).in_compute_dtype()
    exactly = norm.intervals("formula")
    for name, expected in BY_ID["outputs_truncated"].outputs(case).items():
        made = cut_off(exactly[name].placements[0](0.0)[0])
        assert expected.admits(made).all()
        assert not golden(case).outputs[name].admits(made).all()
        assert not expected.admits(
            store(exactly[name].placements[0](0.0)[0].astype(np.float64), "bfloat16").astype(float)
        ).all()


def test_an_interval_cut_off_is_that_of_both_ends():
    case = case_of("rms_norm", "random", "bfloat16", "scale_then_cast")
    true, cut = golden(case).outputs["y"], BY_ID["y_truncated"].outputs(case)["y"]
    ends = [placement(1.0) for placement in true.placements]
    for side, bound in enumerate(cut.interval()):
        np.testing.assert_array_equal(bound, cut_off(ends[0][side]))


@pytest.mark.parametrize("dtype", HALF)
def test_only_the_output_named_is_cut_off(dtype):
    case = case_of("layer_norm", "random", dtype, "scale_then_cast")
    for id_, cut in (("y_truncated", {"y"}), ("dx_truncated", {"dx"}), ("parameter_gradients_truncated", {"dweight", "dbias"})):
        verdict = compare("cut", golden(case), numbers(BY_ID[id_], case), tuple(case.outputs))
        assert {output.output for output in verdict.outputs if not output.passes} == cut


def test_what_is_saved_in_half_precision_leaves_y_alone():
    case = case_of("layer_norm", "mean_30", "bfloat16", "scale_then_cast")
    given = exact(case)
    x, g = given["x"], given["dy"] * given["weight"]
    as_saved = lambda a: store(a, "bfloat16").astype(np.float64)  # noqa: E731
    mean = as_saved(x.mean(-1, keepdims=True))
    rstd = as_saved(1 / np.sqrt(np.var(x, -1, keepdims=True) + case.eps))
    x_hat = (x - mean) * rstd
    dx = rstd * (g - g.mean(-1, keepdims=True) - x_hat * np.mean(g * x_hat, -1, keepdims=True))
    made = BY_ID["statistics_saved_in_storage_dtype"].outputs(case)
    np.testing.assert_allclose(made["dx"].value, dx, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(made["dweight"].value, np.sum(given["dy"] * x_hat, (0, 1)), rtol=1e-9)
    np.testing.assert_array_equal(made["y"].value, true_norm(case, 0).evaluate("formula").y)


def test_the_fast_inverse_root_is_that_of_the_bits():
    x = np.float32(0.15625)
    bits = np.int32(0x5F3759DF) - (np.array(x).view(np.int32) >> 1)
    once = bits.view(np.float32) * (np.float32(1.5) - np.float32(0.5) * x * bits.view(np.float32) ** 2)
    rstd = BY_ID["fast_inverse_root_1"].alter(true_norm(case_of("rms_norm", "random"), 0)).rstd
    made = np.real(rstd(np.array([0.15625 + 0j]), 0.0))[0]
    assert made == pytest.approx(float(once), rel=1e-7)
    assert 1e-4 < abs(made * np.sqrt(0.15625) - 1) < 1.8e-3


@pytest.mark.parametrize("second", ["statistics_over_rows", "padded_width", "statistics_of_first_row", "eps_after_rescale"])
def test_blocks_go_with_what_alters_the_statistics_too(second):
    case = case_of("layer_norm", "width_129")
    for first in ("statistics_of_each_32", "tail_not_masked", "row_cut_at_32", "welford_without_delta_32"):
        for pair in (both(BY_ID[first], BY_ID[second]), both(BY_ID[second], BY_ID[first])):
            assert all(expected.value.shape == case.output_shape(name) for name, expected in pair.outputs(case).items())
