"""The table of cases: how many, which, and that none is lost unnoticed."""

import hashlib
import re
from collections import Counter
from itertools import product
from typing import get_args

import numpy as np
import pytest

from conformance.numbers.rounding import DTYPES, HALF
from conformance.ops.cases import CASES, NoCaseError, require, select
from conformance.ops.golden import golden
from conformance.ops.norms.add_norm import ADD_NORM_CASES
from conformance.ops.norms.cases import ADD_NORMS, ROW_NORM_CASES, ROW_NORMS
from conformance.ops.norms.sharded import SHARDED_CASES
from conformance.question import dialects
from conformance.question.case import Layout, split_over_ranks

COUNTS = {
    ("rms_norm", "float64"): 29,
    ("rms_norm", "float32"): 58,
    ("rms_norm", "bfloat16"): 88,
    ("rms_norm", "float16"): 66,
    ("layer_norm", "float64"): 29,
    ("layer_norm", "float32"): 60,
    ("layer_norm", "bfloat16"): 88,
    ("layer_norm", "float16"): 66,
    ("add_rms_norm", "float64"): 9,
    ("add_rms_norm", "float32"): 20,
    ("add_rms_norm", "bfloat16"): 40,
    ("add_rms_norm", "float16"): 40,
    ("add_layer_norm", "float64"): 9,
    ("add_layer_norm", "float32"): 20,
    ("add_layer_norm", "bfloat16"): 40,
    ("add_layer_norm", "float16"): 40,
    ("gated_rms_norm", "float64"): 16,
    ("gated_rms_norm", "float32"): 38,
    ("gated_rms_norm", "bfloat16"): 28,
    ("gated_rms_norm", "float16"): 28,
    ("quantised_rms_norm", "float32"): 28,
    ("quantised_rms_norm", "bfloat16"): 35,
    ("quantised_rms_norm", "float16"): 24,
    ("quantised_add_rms_norm", "float32"): 5,
    ("quantised_add_rms_norm", "bfloat16"): 15,
    ("quantised_add_rms_norm", "float16"): 15,
    ("batch_norm", "float64"): 28,
    ("batch_norm", "float32"): 35,
    ("batch_norm", "bfloat16"): 29,
    ("batch_norm", "float16"): 26,
    ("rope", "float64"): 1,
    ("rope", "float32"): 6,
    ("rope", "bfloat16"): 3,
    ("rope", "float16"): 3,
    ("attention", "float64"): 2,
    ("attention", "float32"): 16,
    ("attention", "bfloat16"): 9,
    ("attention", "float16"): 9,
    ("swiglu", "float64"): 2,
    ("swiglu", "float32"): 2,
    ("swiglu", "bfloat16"): 2,
    ("swiglu", "float16"): 2,
    ("gelu", "float64"): 5,
    ("gelu", "float32"): 5,
    ("gelu", "bfloat16"): 5,
    ("gelu", "float16"): 5,
    ("pre_ln_block", "float64"): 5,
    ("pre_ln_block", "float32"): 29,
    ("pre_ln_block", "bfloat16"): 19,
    ("pre_ln_block", "float16"): 14,
    ("pre_ln_stack", "float32"): 1,
}

of_every_op_and_dtype = pytest.mark.parametrize(("op", "dtype"), list(product(ROW_NORMS, DTYPES)))
ids = [case.id for case in CASES]


def test_the_number_of_cases_is_pinned():
    """Adding cases is fine: count them here. Nothing passes by not being there."""
    assert Counter((case.op, case.dtype) for case in CASES) == COUNTS
    assert len(CASES) == 1197


def test_ids_are_stable():
    """Ids name files and seed the inputs: to rename one is to break what others have stored."""
    assert hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:32] == "ea56d972e16fdd5f3d19e521858b466a"


def test_ids_are_unique_paths():
    assert len(set(ids)) == len(ids)
    for case in CASES:
        assert re.fullmatch(r"[a-z_]+/[a-z_0-9]+/[a-z0-9]+/[a-z_0-9.-]+", case.id)
        assert case.id == f"{case.op}/{case.id.split('/')[1]}/{case.dtype}/{case.name}"
    assert all(case.id.split("/")[1] == case.dialect.name for case in ROW_NORM_CASES)


def test_ids_do_not_collide_where_case_is_ignored_and_none_is_a_folder_of_another():
    assert len({id_.lower() for id_ in ids}) == len(ids)
    assert not {id_.rpartition("/")[0] for id_ in ids} & set(ids)


@of_every_op_and_dtype
def test_both_orders_are_asked_for_in_half_precision_and_neither_elsewhere(op, dtype):
    orders = {case.dialect.order for case in select(op=op, dtype=dtype)}
    assert orders == ({"cast_then_scale", "scale_then_cast"} if dtype in HALF else {"either_order"})


@of_every_op_and_dtype
def test_both_orders_get_the_same_probes(op, dtype):
    """Else a port of one dialect is asked less than a port of the other."""
    probes = {}
    for case in select(op=op, dtype=dtype):
        name = case.dialect.name.replace("cast_then_scale", "").replace("scale_then_cast", "")
        probes.setdefault(name, Counter())[case.name] += 1
    assert all(set(count.values()) == {2 if dtype in HALF else 1} for count in probes.values())


@of_every_op_and_dtype
def test_the_values_that_matter_are_asked_for_in_every_dtype(op, dtype):
    cases = select(op=op, dtype=dtype)
    assert {"random", "rows_near_eps", "zero_rows", "constant_rows", "mean_30", "nan_row", "inf_row"} <= {c.name for c in cases}
    assert {case.eps for case in cases if not case.exact} == {float(np.float32(eps)) for eps in (1e-5, 1e-6, 1e-8, 1e-12)}
    assert {case.dialect.weight_offset for case in cases} == {0, 1}
    assert {case.dialect.weight_dtype for case in cases} == ({"storage", "float32"} if dtype in HALF else {"storage"})
    assert {case.dialect for case in cases} == set(dialects.of(dtype))


@pytest.mark.parametrize("op", ROW_NORMS)
def test_shapes_and_layouts(op):
    cases = select(op=op, dtype="float32")
    rows = {int(np.prod(case.shape[:-1])) for case in cases}
    assert {case.shape[-1] for case in cases} >= {1, 2, 3, 7, 127, 129, 768, 4096}
    assert rows >= {0, 1, 257, 8192}  # none, one, a prime, many
    assert {(300, 3), (2048, 2)} <= {case.shape for case in cases}  # many narrow ones
    assert {len(case.shape) for case in cases} == {1, 2, 3, 4}
    of_one_process = {layout for layout in get_args(Layout) if not split_over_ranks(layout)}
    assert {case.layout for case in cases} == of_one_process - {"residual_aliased"}


def test_no_two_axes_are_equal():
    """An op that reduces the wrong axis must not get away with it (the narrowest rows, which others make up for, aside)."""
    assert all(len(set(case.shape)) == len(case.shape) for case in ROW_NORM_CASES if case.name not in ("width_2", "width_3"))


def test_parameters_are_given_and_left_out():
    given = {op: {(case.weight != "absent", case.bias) for case in select(op=op)} for op in ROW_NORMS}
    assert given == {"rms_norm": {(True, False), (False, False)}, "layer_norm": set(product((True, False), repeat=2))}


def test_eps_is_a_number_of_float32():
    assert all(case.eps == float(np.float32(case.eps)) for case in CASES)


def test_every_case_says_what_it_exposes():
    assert all(re.fullmatch(r"[a-z].{10,}[^.]", case.exposes) for case in CASES)


@pytest.mark.parametrize(
    ("id_", "outputs"),
    [
        ("rms_norm/cast_then_scale/bfloat16/random", "y bfloat16 dx bfloat16 dweight bfloat16"),
        ("rms_norm/scale_then_cast_float32_weight/bfloat16/random", "y bfloat16 dx bfloat16 dweight float32"),
        ("rms_norm/cast_then_scale_float32_weight/bfloat16/random", "y float32 dx bfloat16 dweight float32"),
        ("rms_norm/either_order/float32/no_weight", "y float32 dx float32"),
        ("layer_norm/either_order/float32/weight_only", "y float32 dx float32 dweight float32"),
        ("layer_norm/either_order/float32/bias_only", "y float32 dx float32 dbias float32"),
        ("layer_norm/either_order/float64/random", "y float64 dx float64 dweight float64 dbias float64"),
        (
            "add_rms_norm/rounded_sum_scale_then_cast_float32_weight/float16/random",
            "y float16 residual_out float16 dx float16 dresidual float16 dweight float32",
        ),
        (
            "add_layer_norm/float32_sum_scale_then_cast/bfloat16/random",
            "y bfloat16 residual_out float32 dx bfloat16 dresidual float32 dweight bfloat16 dbias bfloat16",
        ),
    ],
)
def test_outputs_follow_from_the_dialect_and_the_parameters(id_, outputs):
    (case,) = select(id_)
    assert " ".join(f"{name} {dtype}" for name, dtype in case.outputs.items()) == outputs
    of_parameters = [name for name in case.outputs if name in ("dweight", "dbias")]
    shapes = {name: (33,) if name in of_parameters else case.shape for name in case.outputs}
    assert {name: case.output_shape(name) for name in case.outputs} == shapes


@pytest.mark.parametrize(("op", "dtype"), list(product(ADD_NORMS, DTYPES)))
def test_every_sum_gets_the_probes_of_sums(op, dtype):
    cases = [case for case in ADD_NORM_CASES if (case.op, case.dtype) == (op, dtype)]
    plain = [case for case in cases if case.dialect in (*dialects.SINGLE, *dialects.HALF_SUMS)]
    assert {case.dialect.sum for case in plain} == ({"rounded", "unrounded", "float32"} if dtype in HALF else {""})
    for dialect in {case.dialect for case in plain}:
        mine = {case.name for case in plain if case.dialect == dialect}
        assert mine >= {"random", "rows_near_eps", "cancels", "large_residual", "y_unread", "residual_out_unread"}
    assert {case.dialect.weight_offset for case in cases} == {0, 1}


def test_what_nothing_reads_has_no_cotangent():
    for case in ADD_NORM_CASES:
        cotangents = {name for name in ("dy", "dresidual_out") if name in golden(case).inputs}
        assert cotangents == {"dy", "dresidual_out"} - ({f"d{case.unread}"} if case.unread else set())


def test_a_sum_is_stored_where_it_is_small_and_what_nothing_reads_once_a_dtype():
    """Of float16 in two dialects."""
    left_out = [case for case in ADD_NORM_CASES if not case.has_fixture]
    two = dialects.HALF_SUMS[:2]
    of_others = [case for case in left_out if case.dtype != "float16" or case.dialect in two]
    assert {case.name for case in of_others} == {
        "width_129",
        "rows_257",
        "y_unread",
        "residual_out_unread",
        "sharded_rows",
        "sharded_features",
    }
    assert {case.dialect for case in ADD_NORM_CASES if case.dtype == "float16" and case.has_fixture} == set(two)
    stored = [case for case in ADD_NORM_CASES if case.unread and case.has_fixture]
    assert Counter((case.op, case.dtype, case.name) for case in stored) == Counter(
        product(ADD_NORMS, DTYPES, ("y_unread", "residual_out_unread"))
    )


def test_only_small_cases_have_a_fixture():
    assert {case.name for case in ROW_NORM_CASES if not case.has_fixture} == {
        "width_768",
        "width_4096",
        "rows_257",
        "rows_2048_of_2",
        "rows_8192",
    }
    assert not any(case.has_fixture for case in SHARDED_CASES)


def test_select_takes_globs_that_cross_slashes():
    assert select() == CASES
    assert select("rms_norm/*") == tuple(case for case in CASES if case.op == "rms_norm")
    assert {case.name for case in select("layer_norm/*/zero_rows*")} == {"zero_rows", "zero_rows_eps_1e-12"}
    assert [case.id for case in select("*/float32/width_12[79]", op="rms_norm")] == [
        "rms_norm/either_order/float32/width_127",
        "rms_norm/either_order/float32/width_129",
    ]
    assert select("random") == select("RMS_NORM/*") == ()


def test_names_add_up_and_what_is_excluded_is_left_out():
    norms = select(op=ROW_NORMS, dtype=("float32", "float16"))
    assert norms == tuple(case for case in CASES if case.op in ROW_NORMS and case.dtype in ("float32", "float16"))
    assert select(("*/spike", "*/random"), cases=norms) == tuple(case for case in norms if case.name in ("spike", "random"))
    assert select(dtype="float16", cases=norms) == tuple(case for case in norms if case.dtype == "float16")
    assert select(exclude=("*/spike", "rms_norm/*"), cases=norms) == tuple(
        case for case in norms if case.name != "spike" and case.op != "rms_norm"
    )


@pytest.mark.parametrize(
    ("asked", "option", "words"),
    [
        ({"patterns": ("*/random", "*/randon")}, "case", "no case matches '*/randon'"),
        (
            {"patterns": "gelu/*", "op": "rms_norm", "dtype": ("float32", "float16")},
            "case",
            "of rms_norm in float32 or float16",
        ),
        ({"exclude": "rms_norm/either_order/float32/randon"}, "exclude", "did you mean rms_norm/either_order/float32/random?"),
        ({"patterns": "*/random", "exclude": "*"}, "exclude", "every case that is asked for is excluded"),
    ],
)
def test_a_glob_that_matches_nothing_is_an_error(asked, option, words):
    with pytest.raises(NoCaseError, match=re.escape(words)) as error:
        require(**asked)
    assert error.value.option == option


@of_every_op_and_dtype
def test_select_filters_by_op_and_dtype(op, dtype):
    chosen = select("*", op=op, dtype=dtype)
    assert chosen == tuple(case for case in CASES if (case.op, case.dtype) == (op, dtype))
    assert chosen
    assert select(cases=chosen[:2]) == chosen[:2]
    assert select(op=op, dtype=dtype, cases=chosen[:2]) == chosen[:2]
