"""What dialect other people's norms follow, told from their numbers; skipped where a package is absent."""

from importlib.util import find_spec

import pytest

from conformance.ops.norms.cases import ROW_NORMS
from conformance.port.launch import Launch
from conformance.port.session import Session
from conformance.tools.scoreboard.identify import identify_port
from ports.tinygrad.clang import find_clang

PROMOTED = "scale_then_cast; y is float32"  # nothing is rounded
SCALE, CAST = "scale_then_cast; y is bfloat16", "cast_then_scale; y is bfloat16"
EITHER = (SCALE, SCALE, CAST, "cast_then_scale; y is float32")  # whichever is asked
IN_THIS_PROCESS = ("torch", "transformers")  # slow to load, and several ports need them; others set what is global
NOT_ASKED, UNKNOWN = "not asked", "no known dialect"

# Port, packages, and for both weights, x's own dtype and float32: RMSNorm's dialect, and LayerNorm's where it has one.
DIALECTS = [
    ("ports.equinox", "equinox", (SCALE, SCALE), (SCALE, SCALE)),
    ("ports.flax_linen", "flax", (SCALE, SCALE), (SCALE, SCALE)),
    (
        "ports.flax_nnx",
        "flax",
        (SCALE, "scale_then_cast, the weight rounded first; y is bfloat16"),
        (SCALE, "scale_then_cast, weight and bias rounded first; y is bfloat16"),
    ),
    ("ports.keras", "keras", (SCALE, "scale_then_cast, the weight rounded first; y is bfloat16"), (SCALE, SCALE)),
    ("ports.mlx", "mlx", (CAST, PROMOTED), (CAST, PROMOTED)),
    ("ports.numpy", "numpy", EITHER, EITHER),
    ("ports.onnxruntime", "onnxruntime", (NOT_ASKED, NOT_ASKED), (SCALE, NOT_ASKED)),
    ("ports.onnxruntime.port:Simplified", "onnxruntime", (SCALE, NOT_ASKED), None),
    ("ports.tensorflow", "tensorflow", EITHER, EITHER),
    (
        "ports.tinygrad",
        "tinygrad",
        (CAST, "cast_then_scale; y is float32"),
        (f"{UNKNOWN}; y is bfloat16", f"{UNKNOWN}; y is float32"),
    ),
    ("ports.torch_nn", "torch", (SCALE, SCALE), (SCALE, SCALE)),
    (
        "ports.transformers.port:Gemma",
        "transformers",
        ("scale_then_cast, weight offset 1; y is bfloat16", "scale_then_cast, weight offset 1; y is bfloat16"),
        None,
    ),
    ("ports.transformers.port:Llama", "transformers", (CAST, "cast_then_scale; y is float32"), None),
    ("ports.transformers.port:Qwen3", "transformers", (CAST, "cast_then_scale; y is float32"), None),
    ("ports.transformers.port:T5", "transformers", (CAST, PROMOTED), None),
]


@pytest.mark.one_in(4)
@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # torch's, of a float32 weight: no fused kernel for it
@pytest.mark.parametrize(("spec", "package", "rms_norm", "layer_norm"), DIALECTS, ids=[row[0] for row in DIALECTS])
def test_the_dialect_is_told(spec, package, rms_norm, layer_norm):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if package == "tinygrad" and find_clang() is None:
        pytest.skip("no clang 15 or later, which tinygrad's CPU device compiles with")
    with Session(Launch(spec, mode="eager", timeout=300, in_process=package in IN_THIS_PROCESS)) as session:
        found = identify_port(session, ROW_NORMS, ("bfloat16",))
    expected = {"rms_norm": rms_norm} | ({"layer_norm": layer_norm} if layer_norm else {})
    assert {op: tuple(finding.found for finding in findings[:-1]) for op, findings in found.items()} == expected
    eps = {op: NOT_ASKED if set(told) == {NOT_ASKED} else "inside the root, as asked" for op, told in expected.items()}
    assert {op: findings[-1].found for op, findings in found.items()} == eps
