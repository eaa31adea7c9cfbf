"""`conformance locate`: an honest pair is not accused, a planted fault is named where it is, a broken file is refused."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import nn
from typer.testing import CliRunner

from conformance.cli import app
from conformance.judging.simulation import STYLES, play
from conformance.mistakes import MISTAKES
from conformance.numbers.tensors import read_dump, write_tensors
from conformance.ops.block.taps import TAP
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.tools.locating.locate import TURNED, describe, locate
from impl_torch import LayerNorm, RMSNorm
from impl_torch.dump import dump_activations

AGREE, PART, WRONG_USAGE = 0, 1, 2
FAULTY = 3
(ROPE_BASE,) = (mistake for mistake in MISTAKES if mistake.id == "rope_base_1e4")


class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.qkv, self.o, self.heads, self.scale = nn.Linear(d, 3 * d), nn.Linear(d, d), heads, (d // heads) ** -0.5

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attn = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.o(attn.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, d, norm):
        super().__init__()
        self.attention_norm, self.attention = norm(d), Attention(d, 4)
        self.ffn_norm, self.up, self.act, self.down = norm(d), nn.Linear(d, 3 * d), nn.GELU(), nn.Linear(3 * d, d)

    def forward(self, x):
        h = x + self.attention(self.attention_norm(x))
        return h + self.down(self.act(self.up(self.ffn_norm(h))))


class Within(nn.Module):
    """A layer that computes in another dtype than the model does."""

    def __init__(self, layer, dtype):
        super().__init__()
        self.layer, self.dtype = [layer.to(dtype)], dtype  # in a list, its own output is not dumped

    def forward(self, x):
        return self.layer[0](x.to(self.dtype)).to(x.dtype)


def transformer(norm=RMSNorm, blocks=4, weights=1.0, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(50, 64), *(Block(64, norm) for _ in range(blocks)), norm(64), nn.Linear(64, 50))
    for name, parameter in model.named_parameters():
        parameter.data *= 0.1 if name == "0.weight" else weights if parameter.ndim == 2 else 1.0
    return model


def tensors(path: Path, model: nn.Module, dtype: str, mean: float = 0.0) -> dict[str, np.ndarray]:
    ids = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(1))
    model[0].weight.data += mean
    with torch.no_grad():
        dump_activations(model.to(getattr(torch, dtype)), path, ids)
    return read_dump(path).tensors


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["locate", *map(str, arguments)])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("weights", [1.0, 4.0], ids=["plain", "large_weights"])
@pytest.mark.parametrize(
    ("coarse", "fine"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float64"), ("bfloat16", "float16")]
)
def test_an_honest_pair_is_not_accused(tmp_path, norm, weights, coarse, fine):
    a = tensors(tmp_path / "a", transformer(norm, weights=weights), fine)
    b = tensors(tmp_path / "b", transformer(norm, weights=weights), coarse)
    location = locate(a, b, a)
    assert location.agrees
    assert location.compared == len(a) == len(b) > 30
    assert 0.1 < max(finding.step for finding in location.findings if finding.step) < 2.5  # room to 6, and no idle measure


def test_a_mean_far_from_zero_excuses_what_a_norm_loses_by_it(tmp_path):
    a, b = (tensors(tmp_path / dtype, transformer(LayerNorm), dtype, mean=100.0) for dtype in ("float32", "bfloat16"))
    location = locate(a, b, a)
    assert location.parting is None
    assert next(finding for finding in location.findings if finding.name == "1.attention_norm").apart > 0.05


def eps(model):
    model[FAULTY].ffn_norm.eps = 1e-2


def weight(model):
    model[FAULTY].attention_norm.weight.data *= 1.1


def scale(model):
    model[FAULTY].attention.scale = 4.0


def bias(model):
    model[FAULTY].up.bias.data.zero_()


def in_bfloat16(model):
    model[FAULTY].down = Within(model[FAULTY].down, torch.bfloat16)


def in_float16(model):
    model[FAULTY].down.weight.data *= 1e7
    model[FAULTY].down = Within(model[FAULTY].down, torch.float16)


def nan(model):
    model[FAULTY].up.weight.data[3, 3] = torch.nan


@pytest.mark.parametrize(
    ("fault", "layer", "dtypes", "words"),
    [
        (eps, "ffn_norm", ("float32", "bfloat16", "float16"), "b is 0.9"),
        (weight, "attention_norm", ("float32", "bfloat16", "float16"), "b is 1.1"),
        (scale, "attention.o", ("float32", "float16"), "times what is explained"),
        (bias, "up", ("float32", "bfloat16", "float16"), "times what is explained"),
        (in_bfloat16, "down", ("float32",), "all values of b are bfloat16 numbers"),
        (in_float16, "down", ("float32",), "one of them is NaN or infinite where the other is not"),
        (nan, "up", ("float32", "bfloat16", "float16"), f"the first NaN or infinity is at {FAULTY}.up in b"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_named_where_it_is(tmp_path, fault, layer, dtypes, words):
    tensors(tmp_path / "a", transformer(), "float32")
    for dtype in dtypes:
        model = transformer()
        fault(model)
        tensors(tmp_path / "b", model, dtype)
        status, output = run(tmp_path / "a", tmp_path / "b")
        assert status == PART
        assert f"they part at {FAULTY}.{layer}:" in output
        assert words in output


def test_a_turn_that_float32_cannot_tell_exactly_is_explained_by_the_position():
    (case,) = select("pre_ln_block/llama/float32/position_5000")
    exact = golden(case).intermediates
    for mistake, with_position in ((None, None), (ROPE_BASE, "q_rope")):
        played = play(case, 0, STYLES[0], mistake)
        activations = {name.removeprefix(TAP): value for name, value in played.items() if name.startswith(TAP)}
        parted = locate(exact, activations, activations, "float32").parting
        assert (parted.name, parted.hint) == ("q_rope", TURNED)
        parted = locate(exact, activations, activations, "float32", position=5007).parting
        assert (parted and parted.name) == with_position


def test_other_weights_part_at_the_first(tmp_path):
    tensors(tmp_path / "a", transformer(seed=0), "float32")
    tensors(tmp_path / "b", transformer(seed=1), "float32")
    status, output = run(tmp_path / "a", tmp_path / "b")
    assert status == PART
    assert "they part at 0: " in output
    model = transformer()
    with torch.no_grad():
        dump_activations(model, tmp_path / "b", torch.zeros(2, 16, dtype=torch.long))
    status, output = run(tmp_path / "a", tmp_path / "b")
    assert "they part at input.0: " in output
    assert "of its integers differ" in output
    assert "were both given the same weights and inputs?" in output


def test_a_run_that_computes_in_less_than_it_stores_is_excused_when_it_says_so(tmp_path):
    generator = np.random.default_rng(0)
    a = {f"{layer}": generator.normal(size=(5, 40)).astype(np.float32) for layer in range(4)}
    b = {name: x.astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in a.items()}
    write_tensors(tmp_path / "a", a, ordered=True)
    write_tensors(tmp_path / "b", b, ordered=True)
    status, output = run(tmp_path / "a", tmp_path / "b")
    assert (status, "they part at 0: " in output, "bfloat16 numbers" in output) == (PART, True, True)
    status, output = run(tmp_path / "a", tmp_path / "b", "--dtype", "bfloat16")
    assert (status, "they agree: 4 activations" in output) == (AGREE, True)


def test_a_coarser_dtype_is_said_where_it_begins():
    x = np.linspace(-1, 1, 30, dtype=np.float32)
    location = locate({"p": x, "q": x, "r": x}, {"p": x, "q": x.astype(ml_dtypes.bfloat16), "r": x}, "pqr")
    assert location.agrees
    assert location.coarser.name == "q"


def test_what_drifts_apart_has_no_layer_to_accuse():
    x, noise = np.random.default_rng(0).normal(size=(2, 1000))
    a = {str(layer): x for layer in range(52)}
    b = {name: x + 1e-15 * 2 ** int(name) * noise for name in a}
    location = locate(a, b, a)
    assert location.parting is None
    assert location.drifted.name == "50"
    assert not location.agrees


def test_equal_files_are_equal_to_the_bit(tmp_path):
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf)
    write_tensors(
        tmp_path / "a", {"mask": mask, "zeros": np.zeros(3), "none": np.zeros((0, 3)), "one": np.ones(())}, ordered=True
    )
    status, output = run(tmp_path / "a", tmp_path / "a")
    assert (status, "they agree: 4 activations, equal to the bit" in output) == (AGREE, True)


def test_the_largest_numbers_overflow_nothing():
    x = np.array([1.7e308, -1.7e308, 1.0])
    (finding,) = locate({"x": x}, {"x": -x}, ["x"]).findings
    assert finding.apart == pytest.approx(2)
    assert finding.scale == pytest.approx(-1)
    assert finding.a.std == pytest.approx(1.7e308 * np.sqrt(2 / 3))


@pytest.mark.parametrize(("value", "broken"), [(np.nan, True), (np.inf, True), (-np.inf, False), (3e38, False)])
def test_one_run_alone_names_its_first_nan_or_infinity(tmp_path, value, broken):
    write_tensors(
        tmp_path / "a", {"z": np.ones(4), "b": np.array([1.0, value, 2.0, 3.0]), "a": np.full(4, np.nan)}, ordered=True
    )
    assert describe(read_dump(tmp_path / "a").tensors).broken.name == ("b" if broken else "a")
    status, output = run(tmp_path / "a")
    assert status == PART
    assert f"the first NaN or infinity is at {'b' if broken else 'a'}" in output
    assert "100.00%" in output


def test_nan_in_both_is_no_parting_but_is_said(tmp_path):
    x = np.array([1.0, np.nan])
    write_tensors(tmp_path / "a", {"x": x}, ordered=True)
    status, output = run(tmp_path / "a", tmp_path / "a")
    assert status == PART
    assert "they part" not in output
    assert "the first NaN or infinity is at x in a and b" in output


def test_names_and_shapes_that_do_not_match_are_said(tmp_path):
    x = np.ones((2, 3), np.float32)
    write_tensors(tmp_path / "a", {"q": x, "left": x, "k": x.T}, ordered=True)
    write_tensors(tmp_path / "b", {"q": x, "k": x, "right": x}, ordered=True)
    status, output = run(tmp_path / "a", tmp_path / "b", "--json", tmp_path / "report.json")
    assert status == AGREE
    assert "only in a: left only in b: right not compared, since their shapes differ: k" in output
    report = json.loads((tmp_path / "report.json").read_text())
    assert [each["name"] for each in report["activations"]] == ["q", "left", "k", "right"]
    assert (report["exit_status"], report["parts"], report["activations"][0]["apart"]) == (AGREE, None, 0.0)
    write_tensors(tmp_path / "b", {"other": x})
    status, output = run(tmp_path / "a", tmp_path / "b")
    assert (status, "no name in common" in output) == (WRONG_USAGE, True)


def test_json_holds_what_json_lacks_as_strings(tmp_path):
    write_tensors(tmp_path / "a", {"x": np.full(3, np.inf, np.float16)})
    assert run(tmp_path / "a", "--json", tmp_path / "report.json")[0] == PART
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["broken"] == "x"
    assert report["activations"][0]["a"]["mean"] == "nan"


def test_the_order_is_the_files_or_a_guess_that_is_called_one(tmp_path):
    names = ["9.z", "10.a", "2.b"]
    arrays = {name: np.ones(2, np.float32) for name in names}
    write_tensors(tmp_path / "ordered", arrays, ordered=True)
    write_tensors(tmp_path / "sorted", arrays)
    header = {name: {"dtype": "I16", "shape": [1], "data_offsets": [2 * i, 2 * i + 2]} for i, name in enumerate(names)}
    content = json.dumps(header).encode()
    (tmp_path / "as_written").write_bytes(struct.pack("<Q", len(content)) + content + bytes(6))
    for file, order in (("ordered", names), ("sorted", ["2.b", "9.z", "10.a"]), ("as_written", names)):
        dump = read_dump(tmp_path / file)
        assert list(dump.tensors) == order
        assert dump.ordered == (file == "ordered")
        assert ("the order is a guess" in run(tmp_path / file)[1]) != dump.ordered
    report = ["--json", tmp_path / "report.json"]
    assert "the order is a guess" not in run(tmp_path / "sorted", tmp_path / "ordered", *report)[1]
    assert [each["name"] for each in json.loads((tmp_path / "report.json").read_text())["activations"]] == names


def test_every_dtype_is_read_as_it_was_written(tmp_path):
    names = ["float64", "float32", "float16", "bool", *(f"{sign}int{8 << i}" for sign in ("", "u") for i in range(4))]
    arrays = {name: np.array([0, 1, 2]).astype(name) for name in names}
    arrays |= {name: np.array([0, 1, 2]).astype(name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
    write_tensors(tmp_path / "a", {name: x for name, x in arrays.items() if not name.startswith("float8")}, ordered=True)
    torch_only = {name: torch.tensor([0.0, 1.0, 2.0]).to(getattr(torch, name)) for name in ("float8_e4m3fn", "float8_e5m2")}

    class Casts(nn.Module):
        def forward(self, x):
            return {**torch_only, "x": x}

    dump_activations(Casts(), tmp_path / "b", torch.zeros(2))
    read = read_dump(tmp_path / "a").tensors
    read |= {name.removeprefix("output."): x for name, x in read_dump(tmp_path / "b").tensors.items()}
    for name, x in arrays.items():
        assert read[name].dtype == x.dtype
        np.testing.assert_array_equal(read[name].astype(float), x.astype(float))
    assert run(tmp_path / "b", tmp_path / "b")[0] == AGREE


GOOD = save({"x": np.ones(4, np.float32)})


def with_header(header: object) -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + bytes(8)


X = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "not a readable safetensors file"),
        (b"no tensors here", "not a readable safetensors file"),
        (GOOD[:-3], "not a readable safetensors file"),
        (GOOD[:20], "not a readable safetensors file"),
        (struct.pack("<Q", 2**62) + GOOD[8:], "not a readable safetensors file"),
        (with_header({"x": X | {"shape": [3]}}), "not a readable safetensors file"),
        (with_header({"x": X | {"dtype": "C64", "shape": [1]}}), "tensor 'x' is C64; known are F64, F32, BF16"),
        (with_header({"__metadata__": {"order": "x"}, "x": X}), "the metadata's order is x; it must be a JSON list"),
        (with_header({"__metadata__": {"order": '["y"]'}, "x": X}), "the metadata's order does not list the file's tensors"),
        (with_header({"__metadata__": {"order": '["x", "x"]'}, "x": X}), "see 'a name twice'"),
    ],
)
def test_a_file_that_is_none_is_named_with_the_reason(tmp_path, content, words):
    path = tmp_path / "broken"
    if content is not None:
        path.write_bytes(content)
    (tmp_path / "good").write_bytes(GOOD)
    for arguments in ([path], [tmp_path / "good", path], [path, tmp_path / "good"]):
        status, output = run(*arguments)
        assert status == WRONG_USAGE
        assert words in output
        assert str(path) in output.replace(" ", "")


def test_a_folder_is_no_dump(tmp_path):
    status, output = run(tmp_path)
    assert status == WRONG_USAGE
    assert "not a readable safetensors file" in output
