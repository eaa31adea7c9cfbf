"""Mistakes in a block's rotary embedding."""

import torch
from torch import Tensor

from tests.judge.written.torch_blocks.block import Block, compute_dtype, fault


class NeighboursForHalves(Block):
    """Neighbours are turned as pairs where halves should be, and halves where neighbours should be."""

    def pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.rope == "interleaved":
            a, b = x.chunk(2, dim=-1)
            return a, b
        return x[..., 0::2], x[..., 1::2]

    def unpair(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a, b), dim=-1) if self.config.rope == "interleaved" else torch.stack((a, b), dim=-1).flatten(-2)


class NeighboursPutBackAsHalves(Block):
    """Neighbours are turned, and put back as halves: another order of features, the same for queries and keys."""

    def pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., 0::2], x[..., 1::2]

    def unpair(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a, b), dim=-1)


class BaseOf1e4(Block):
    """The base is 10000, whatever the config says."""

    def frequencies(self, d_head: int, dtype: torch.dtype) -> Tensor:
        return 1.0 / 10_000.0 ** (torch.arange(0, d_head, 2).to(dtype) / d_head)


class ExponentHalved(Block):
    """The exponent counts pairs, not features."""

    def frequencies(self, d_head: int, dtype: torch.dtype) -> Tensor:
        return 1.0 / self.config.rope_base ** (torch.arange(0, d_head // 2).to(dtype) / d_head)


class ExponentOverDModel(Block):
    """The exponent is divided by d_model."""

    def frequencies(self, d_head: int, dtype: torch.dtype) -> Tensor:
        return 1.0 / self.config.rope_base ** (torch.arange(0, d_head, 2).to(dtype) / self.config.d_model)


class FrequenciesByLinspace(Block):
    """The exponents are a linspace from 0 to 1, both ends included."""

    def frequencies(self, d_head: int, dtype: torch.dtype) -> Tensor:
        return self.config.rope_base ** -torch.linspace(0, 1, d_head // 2, dtype=dtype)


class FrequenciesInBfloat16(Block):
    """inv_freq is a buffer, which model.bfloat16() has cast."""

    def frequencies(self, d_head: int, dtype: torch.dtype) -> Tensor:
        return super().frequencies(d_head, dtype).bfloat16().to(dtype)


class PositionsInBfloat16(Block):
    """The positions are counted in bfloat16."""

    def positions(self, s: int, dtype: torch.dtype) -> Tensor:
        return super().positions(s, dtype).bfloat16().to(dtype)


class AnglesInFloat16(Block):
    """The angles are float16, and so are their cosines and sines."""

    def rope(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        angles = torch.outer(self.positions(x.shape[1], dtype), self.frequencies(x.shape[-1], dtype)).half()
        return self.rotate(x, torch.cos(angles).to(dtype)[:, None], torch.sin(angles).to(dtype)[:, None])


class PositionsRestart(Block):
    """Positions begin at zero, whatever was before."""

    def positions(self, s: int, dtype: torch.dtype) -> Tensor:
        return torch.arange(s).to(dtype)


class PositionsFromOne(Block):
    """Positions are counted from one."""

    def positions(self, s: int, dtype: torch.dtype) -> Tensor:
        return super().positions(s, dtype) + 1


class QueriesOnePositionAhead(Block):
    """Queries are turned by the angles of the next position."""

    def rope_of_queries(self, q: Tensor) -> Tensor:
        self.position += 1
        q = self.rope(q)
        self.position -= 1
        return q


class TurnedTheOtherWay(Block):
    """rotate_half gives (x2, -x1)."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super().rotate(x, cos, -sin)


class RotateHalfWithoutSign(Block):
    """rotate_half gives (x2, x1): the minus is missing."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = self.pair(x.to(cos.dtype))
        return self.unpair(a * cos + b * sin, a * sin + b * cos).to(x.dtype)


class CosAndSinSwapped(Block):
    """Cosines and sines are exchanged."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super().rotate(x, sin, cos)


class TurnedByHead(Block):
    """Heads are taken for positions: cos and sin are broadcast along the wrong axis."""

    def rope(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        angles = torch.arange(x.shape[2]).to(dtype)[:, None] * self.frequencies(x.shape[-1], dtype)  # h d_head/2
        return self.rotate(x, torch.cos(angles), torch.sin(angles))


class HalfOfTheHeadTurned(Block):
    """Only the first half of every head's features is turned, as a partial rotary factor of 0.5 has it."""

    def rope(self, x: Tensor) -> Tensor:
        turned, passed = x.chunk(2, dim=-1)
        return torch.cat((super().rope(turned), passed), dim=-1)


class KeysNotTurned(Block):
    """Keys are not turned."""

    def rope_of_keys(self, k: Tensor) -> Tensor:
        return k


class RopeMissing(Block):
    """Neither queries nor keys are turned."""

    def rope(self, x: Tensor) -> Tensor:
        return x


class ValuesTurned(Block):
    """Values are turned too."""

    def prepare_values(self, v: Tensor) -> Tensor:
        return v if self.config.rope == "none" else self.rope(v)


class TurnedTwice(Block):
    """Queries and keys are turned by the caller already, and here again."""

    def rope(self, x: Tensor) -> Tensor:
        return super().rope(super().rope(x))


class TurnedBeforeTheirNorm(Block):
    """Queries and keys are turned, then normalised."""

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.rope(q) if self.config.rope != "none" else q, self.rope(k) if self.config.rope != "none" else k
        return (self.qk_norm(q, "q"), self.qk_norm(k, "k")) if self.config.qk_norm else (q, k)


class CachedKeysTurnedAgain(Block):
    """The cache holds turned keys, and all keys are turned."""

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.qk_norm:
            q, k = self.qk_norm(q, "q"), self.qk_norm(k, "k")
        return (q if self.config.rope == "none" else self.rope(q)), k

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        if self.config.rope != "none":
            self.position -= k.shape[1] - q.shape[1]
            k = self.rope(k)
        return super().attend(q, k, v, visible)


FAULTS = (
    fault(NeighboursForHalves, "rope_pairs_swapped"),
    fault(NeighboursPutBackAsHalves, "rope_pairs_swapped", taps=True),
    fault(BaseOf1e4, "rope_base_1e4", taps=True),
    fault(ExponentHalved, "rope_exponent_halved"),
    fault(ExponentOverDModel, "rope_over_d_model", taps=True),
    fault(FrequenciesByLinspace, "rope_by_linspace"),
    fault(FrequenciesInBfloat16, "rope_frequencies_in_bfloat16", taps=True),
    fault(PositionsInBfloat16, "rope_positions_in_bfloat16", taps=True),
    fault(AnglesInFloat16, "rope_angles_in_float16", "rope_tables_in_float16", taps=True),
    fault(PositionsRestart, "position_restarts", taps=True),
    fault(PositionsFromOne, "position_from_one", taps=True),
    fault(QueriesOnePositionAhead, "position_of_query_off_by_one"),
    fault(TurnedTheOtherWay, "rope_sign", taps=True),
    fault(RotateHalfWithoutSign, "rope_minus_missing"),
    fault(CosAndSinSwapped, "rope_cos_and_sin_swapped", taps=True),
    fault(TurnedByHead, "rope_by_head"),
    fault(HalfOfTheHeadTurned, "rope_over_half_of_the_head"),
    fault(KeysNotTurned, "rope_of_keys_missing", taps=True),
    fault(RopeMissing, "rope_missing"),
    fault(ValuesTurned, "rope_on_values"),
    fault(TurnedTwice, "rope_twice", taps=True),
    fault(TurnedBeforeTheirNorm, "rope_before_qk_norm"),
    fault(CachedKeysTurnedAgain, "cached_keys_turned_again"),
)
