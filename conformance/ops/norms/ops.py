"""The norms, as ops."""

from dataclasses import replace

from conformance.ops.norms.add_norm import ADD_NORM_CASES, RESIDUAL_OUT
from conformance.ops.norms.anatomy import true_norm
from conformance.ops.norms.batch_norm import BATCH_NORM_CASES, RUNNING, STATISTICS
from conformance.ops.norms.cases import ROW_NORM_CASES, Y
from conformance.ops.norms.gated_norm import GATED_NORM_CASES
from conformance.ops.norms.golden import batch_norm_golden, norm_golden
from conformance.ops.norms.grouped import GROUPED_CASES
from conformance.ops.norms.quantised import QUANTISED_CASES, SCALE, Q
from conformance.ops.norms.sharded import SHARDED_CASES
from conformance.ops.op import Constant, Op, Tensor

RMS_NORM = Op(
    name="rms_norm",
    formula="x / sqrt(mean(x²) + eps) · weight; without weight if it is None.",
    tensors=(Tensor("x"), Tensor("weight")),
    outputs=(Y,),
    constants=(
        Constant("eps"),
        Constant("order", offered=True),
        Constant("weight_offset", offered=True),
        Constant("group_size", offered=True, explicit=True),
    ),
    cases=tuple(case for case in (*ROW_NORM_CASES, *GROUPED_CASES, *SHARDED_CASES) if case.op == "rms_norm"),
    golden=norm_golden,
    anatomy=true_norm,
)
LAYER_NORM = replace(
    RMS_NORM,
    name="layer_norm",
    formula="(x - mean(x)) / sqrt(var(x) + eps) · weight + bias.",
    tensors=(*RMS_NORM.tensors, Tensor("bias")),
    cases=tuple(case for case in (*ROW_NORM_CASES, *GROUPED_CASES, *SHARDED_CASES) if case.op == "layer_norm"),
)
ADD_RMS_NORM = replace(
    RMS_NORM,
    name="add_rms_norm",
    formula="(rms_norm(x + residual), x + residual).",
    tensors=(Tensor("x"), Tensor("residual"), Tensor("weight")),
    outputs=(Y, RESIDUAL_OUT),
    constants=(*RMS_NORM.constants[:3], Constant("sum", offered=True)),
    cases=tuple(case for case in ADD_NORM_CASES if case.op == "add_rms_norm"),
    built_on=("rms_norm",),
)
ADD_LAYER_NORM = replace(
    ADD_RMS_NORM,
    name="add_layer_norm",
    formula="(layer_norm(x + residual), x + residual).",
    tensors=(*ADD_RMS_NORM.tensors, Tensor("bias")),
    cases=tuple(case for case in ADD_NORM_CASES if case.op == "add_layer_norm"),
    built_on=("layer_norm",),
)
QUANTISED_RMS_NORM = replace(
    RMS_NORM,
    name="quantised_rms_norm",
    formula="(round(y / scale), scale), y = rms_norm(x); the first alone where a static scale is given.",
    tensors=tuple(Tensor(name, differentiable=False) for name in ("x", "weight", "scale")),
    outputs=(Q, SCALE),
    constants=(
        *(Constant("eps"), Constant("order", offered=True), Constant("y", offered=True)),
        *(Constant("quantised_dtype"), Constant("scaling"), Constant("scale_ub", sometimes=True)),
    ),
    cases=tuple(case for case in QUANTISED_CASES if case.op == "quantised_rms_norm"),
    built_on=("rms_norm",),
)
QUANTISED_ADD_RMS_NORM = replace(
    QUANTISED_RMS_NORM,
    name="quantised_add_rms_norm",
    formula="(*quantised_rms_norm(x + residual), x + residual).",
    tensors=tuple(Tensor(name, differentiable=False) for name in ("x", "residual", "weight", "scale")),
    outputs=(Q, SCALE, RESIDUAL_OUT),
    constants=(*QUANTISED_RMS_NORM.constants, Constant("sum", offered=True)),
    cases=tuple(case for case in QUANTISED_CASES if case.op == "quantised_add_rms_norm"),
    built_on=("quantised_rms_norm", "add_rms_norm", "rms_norm"),
)
GATED_RMS_NORM = replace(
    RMS_NORM,
    name="gated_rms_norm",
    formula="rms_norm(x) · act(gate), or without norm_before_gate rms_norm(x · act(gate)).",
    tensors=(Tensor("x"), Tensor("gate"), Tensor("weight")),
    constants=(
        Constant("eps"),
        Constant("norm_before_gate"),
        Constant("activation"),
        Constant("group_size", sometimes=True, explicit=True),
        Constant("order", offered=True),
    ),
    cases=GATED_NORM_CASES,
    built_on=("rms_norm",),
)
BATCH_NORM = Op(
    name="batch_norm",
    formula="What spec.md says of BatchNorm; in training (y, running_mean, running_var).",
    tensors=(*LAYER_NORM.tensors, *(Tensor(name, differentiable=False, by_name=True) for name in RUNNING)),
    outputs=(Y, *STATISTICS),
    constants=(
        Constant("eps"),
        Constant("training"),
        Constant("momentum", sometimes=True),
        Constant("unbiased", sometimes=True),
    ),
    cases=BATCH_NORM_CASES,
    golden=batch_norm_golden,
    anatomy=true_norm,
)
