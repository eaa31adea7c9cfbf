"""Whatever a port does, its diagnosis ends with an answer: any two mistakes can be made at once, and NaN is a number like any.

`PYTHONPATH=. python tests/judge/test_diagnosis_holds.py 1000 0` asks for all outputs of so many pairs, drawn with a seed.
"""

import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu

from conformance.block.cases import BlockCase
from conformance.block.golden import run
from conformance.block.machine import Machine
from conformance.block.taps import tap_names
from conformance.case import OPS, TAPPED, Case
from conformance.cases import CASES, select
from conformance.compare import Verdict, admits, compare, compare_output
from conformance.diagnose import diagnose
from conformance.golden import golden
from conformance.mistakes import MISTAKES, Mistake
from conformance.mistakes.mistake import both
from conformance.norms.anatomy import BACKWARDS
from conformance.norms.cases import NORMS
from conformance.protocol import Call
from conformance.rounding import significant_bits, store
from conformance.simulation import numbers
from impl_torch import rope
from impl_torch.port import TorchPort

BY_ID = {mistake.id: mistake for mistake in MISTAKES}
SMALL = tuple(case for case in CASES if case.has_fixture or (case.op not in NORMS and case.shape[0] <= 2))

Pair = tuple[Mistake, Case]


def pairs(count: int, seed: int, *ops: str) -> Iterator[Pair]:
    """So many pairs of mistakes of these ops, in either order, each with a small case of its op, the same for a seed."""
    generator = random.Random(seed)
    for number in range(count):
        op = ops[number % len(ops)]
        of_op = [mistake for mistake in MISTAKES if op in mistake.ops]
        first, second = generator.sample(of_op, 2)
        yield both(first, second), generator.choice([case for case in SMALL if case.op == op])


def evaluate(pair: Mistake, case: Case) -> None:
    """Everything that is cheap to ask of a pair: values, and what is expected of a port's intermediates."""
    if not isinstance(case, BlockCase):
        for backward in BACKWARDS:
            assert pair.outputs(case, 0, backward).keys() == case.outputs.keys()
        return
    altered = pair.altered(case, 0)
    values, outputs = run(altered, Machine(), 0)
    assert {name: value.shape for name, value in outputs.items()} == {name: case.output_shape(name) for name in case.outputs}
    if case.op in TAPPED:
        taps = {name: store(values[name], case.dtype) for name in tap_names(altered.program)}
        altered_taps = pair.taps(case, 0, taps)
        assert {name: tap.value.shape for name, tap in altered_taps.items()} == {
            name: taps[name].shape for name in altered_taps
        }


def ask_all(pair: Mistake, case: Case) -> None:
    """Everything that a diagnosis asks of a pair, its intervals included."""
    evaluate(pair, case)
    for name, expected in pair.outputs(case, 0).items():
        lower, upper = expected.interval()
        assert lower.shape == upper.shape == case.output_shape(name)


@pytest.mark.parametrize("op", OPS)
def test_any_two_mistakes_can_be_made_at_once(op):
    for pair, case in pairs(120, 1, op):
        evaluate(pair, case)


def test_two_mistakes_at_once_have_intervals():
    for pair, case in pairs(18, 2, *OPS):
        ask_all(pair, case)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("matmul_in_tf32", "scale_missing"),
        ("mask_of_minus_1e4", "causal_mask_missing"),
        ("norm_of_the_other_kind", "norm_eps_missing"),
        ("softmax_over_queries", "causal_mask_one_too_few"),
        ("ffn_norm_missing", "norm_statistics_without_gradient"),
        ("cached_keys_turned_again", "cache_behind"),
        ("post_ln", "branches_normed_twice"),
        ("matmul_accumulated_in_storage_dtype", "dweight_accumulated_in_storage_dtype"),
    ],
)
def test_a_mistake_in_an_op_that_another_has_wrapped(first, second):
    """An op is found within what is wrapped around it, and where it is gone there is nothing to alter."""
    for one, other in ((first, second), (second, first)):
        for case in select("pre_ln_block/llama/*", dtype="float32") + select("pre_ln_block/gpt2/*", dtype="bfloat16"):
            evaluate(both(BY_ID[one], BY_ID[other]), case)


def test_both_of_two_mistakes_are_made_where_one_has_wrapped_the_other():
    """Scores of coarse products, times four: four times those of coarse products."""
    (case,) = select("pre_ln_block/llama/float32/random")
    coarse, two = BY_ID["matmul_in_tf32"], both(BY_ID["matmul_in_tf32"], BY_ID["scale_missing"])
    scores = [run(mistake.altered(case, 0), Machine(), 0)[0]["scores"] for mistake in (coarse, two)]
    np.testing.assert_allclose(scores[1], np.sqrt(case.config.d_head) * scores[0], rtol=1e-12)


def test_one_cotangent_altered_twice_is_altered_twice():
    (case,) = select("pre_ln_block/gpt2/float64/random")
    two = both(BY_ID["dweight_halved"], BY_ID["dbias_missing"]).values(case, 0)
    right = {name: output.value for name, output in golden(case).outputs.items()}
    np.testing.assert_allclose(two["dattention.q.weight"], 0.5 * right["dattention.q.weight"], rtol=1e-9)
    assert not np.any(two["dattention.q.bias"])


@pytest.mark.parametrize(
    ("made", "id_"),
    [
        ("softmax_without_maximum", "pre_ln_block/llama/float32/hot"),
        ("softmax_without_maximum", "pre_ln_block/llama/bfloat16/hot"),
        ("hidden_row_is_nan", "pre_ln_block/llama/float32/hides_a_row"),
        ("hidden_row_is_nan", "attention/grouped/float16/hides_a_row"),
    ],
)
def test_a_mistake_that_makes_nan_admits_its_own_numbers_and_no_others(made, id_):
    (case,) = select(id_)
    expected, right = BY_ID[made].outputs(case, 0), golden(case).outputs
    answer = numbers(BY_ID[made], case)
    assert any(np.isnan(output.astype(np.float64)).any() for output in answer.values())
    for name in case.outputs:
        assert compare_output(name, expected[name], answer[name]).passes
    assert not all(admits(expected[name], compare_output(name, right[name], right[name].nearest)) for name in case.outputs)


def test_the_root_mean_square_is_that_of_what_is_finite():
    """A mistake's own limit still rejects many small errors where some of its elements are NaN."""
    (case,) = select("attention/grouped/float32/hides_a_row")
    expected = BY_ID["hidden_row_is_nan"].outputs(case, 0)["y"]
    assert 0 < expected.rms < np.inf
    _, upper = expected.interval()
    inside = expected.value + 0.9 * (upper - expected.value)
    assert not compare_output("y", expected, store(inside, case.dtype)).passes
    finite = np.where(np.isfinite(expected.value), expected.value, np.nan)
    assert compare_output("y", expected, store(finite, case.dtype)).passes


class Block(TorchPort):
    """Llama's block as people write it; a fault overrides one of its steps."""

    taps = True

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)

    def second_norm(self, h: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self.norm(h, weight, eps)

    def rounded(self, a: Tensor) -> Tensor:
        """What a product of matrices makes of either of them."""
        return a

    def hidden(self, scores: Tensor, visible: Tensor) -> Tensor:
        return scores.masked_fill(~visible, -torch.inf).masked_fill(~visible.any(-1, keepdim=True), 0.0)

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        return torch.softmax(self.hidden(scores, visible), dim=-1) * visible.any(-1, keepdim=True)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(self.rounded(x), self.rounded(weight))

    def pre_ln_block(self, x, p, k_cache, v_cache, key_mask, *, config, position, taps=False):
        kept: dict[str, Tensor] = {}

        def tap(name: str, value: Tensor) -> Tensor:
            return kept.setdefault(name, value)

        normed = tap("attention_norm", self.norm(x, p["attention_norm.weight"], config.eps))
        q, k, v = (
            tap(name, self.linear(normed, p[f"attention.{name}.weight"]).unflatten(-1, (-1, config.d_head))) for name in "qkv"
        )
        q, k = (tap(name, rope(a, position=position, base=config.rope_base)) for name, a in (("q_rope", q), ("k_rope", k)))
        k, v = (new if old is None else torch.cat([old, new], dim=1) for old, new in ((k_cache, k), (v_cache, v)))
        k, v = (a.repeat_interleave(config.n_heads // config.n_kv_heads, dim=2) for a in (k, v))
        s, t = q.shape[1], k.shape[1]
        visible = torch.ones(s, t, dtype=torch.bool).tril(t - s)
        visible = visible if key_mask is None else visible & (key_mask != 0)[:, None, None, :]
        q, k, v = (self.rounded(a.transpose(1, 2)) for a in (q, k, v))
        scores = tap("scores", q @ k.mT / config.d_head**0.5)
        probs = tap("probs", self.probs(scores, visible))
        attn = tap("attn", (self.rounded(probs) @ v).transpose(1, 2).flatten(2))
        attn_out = tap("attn_out", self.linear(attn, p["attention.o.weight"]))
        h = tap("h", x + attn_out)
        normed = tap("ffn_norm", self.second_norm(h, p["ffn_norm.weight"], config.eps))
        gate, up = (tap(name, self.linear(normed, p[f"feed_forward.{name}.weight"])) for name in ("gate", "up"))
        ffn_out = tap("ffn_out", self.linear(tap("act", silu(gate) * up), p["feed_forward.down.weight"]))
        out = tap("out", h + ffn_out)
        return (out, kept) if taps else out


class EpsOutsideTheRoot(Block):
    def norm(self, x, weight, eps):
        return weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)


class LayerNormForRMSNorm(Block):
    def norm(self, x, weight, eps):
        return layer_norm(x, weight.shape, weight, eps=eps)


class NoSecondNorm(Block):
    def second_norm(self, h, weight, eps):
        return h + 0 * weight


class SoftmaxOverQueries(Block):
    def probs(self, scores, visible):
        return torch.softmax(scores.masked_fill(~visible, -1e30), dim=-2)


class MaskOfMinus1e4(Block):
    def probs(self, scores, visible):
        return torch.softmax(scores.masked_fill(~visible, -1e4), dim=-1)


class NaNOfARowThatSeesNothing(Block):
    def probs(self, scores, visible):
        return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)


class MatricesInTF32(Block):
    def rounded(self, a):
        return _Coarse.apply(a)


class _Coarse(torch.autograd.Function):
    """11 significant bits, forward and backward."""

    @staticmethod
    def forward(ctx, a):
        return torch.from_numpy(significant_bits(a.detach().double().numpy(), 11)).to(a.dtype)

    @staticmethod
    def backward(ctx, da):
        return _Coarse.forward(ctx, da)


ASKED = [case for case in select("pre_ln_block/llama/float32/*") if case.name in ("small", "hides_a_row")]
WRITTEN = (
    EpsOutsideTheRoot,
    LayerNormForRMSNorm,
    NoSecondNorm,
    SoftmaxOverQueries,
    MaskOfMinus1e4,
    NaNOfARowThatSeesNothing,
    MatricesInTF32,
)


def verdicts_on(port: type[Block], *, taps: bool) -> tuple[Verdict, ...]:
    """The verdicts on a port's answers, in eager mode."""
    return tuple(_verdict(port(jit=False), case, taps=taps) for case in ASKED)


def _verdict(port: Block, case: Case, *, taps: bool) -> Verdict:
    expected, asked = golden(case), tuple(case.outputs)
    call = Call(
        0, case.id, case.op, case.dtype, "either_order", 0, case.eps, case.layout, asked, "", "", case.settings, taps=taps
    )
    return compare("port", expected, port.answer(call, expected.inputs).outputs, asked)


@pytest.mark.parametrize("taps", [True, False])
def test_the_block_without_a_fault_passes(taps):
    assert {verdict.status for verdict in verdicts_on(Block, taps=taps)} == {"pass"}


@pytest.mark.parametrize("taps", [True, False])
@pytest.mark.parametrize("port", WRITTEN)
def test_what_people_write_is_diagnosed(port, taps):
    verdicts = verdicts_on(port, taps=taps)
    failing = {verdict.case.id for verdict in verdicts if verdict.status == "fail"}
    assert failing
    for diagnosis in diagnose(verdicts, seed=0):
        assert {verdict.case.id for verdict in diagnosis.explained} <= failing


if __name__ == "__main__":
    for made, asked in pairs(int(sys.argv[1]), int(sys.argv[2]), *OPS):
        ask_all(made, asked)
