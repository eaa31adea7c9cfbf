"""torch.nn.TransformerEncoderLayer as it ships: GPT-2's block with `norm_first=True`, else BERT's, given the case's weights."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import ports.torch_nn.port
from conformance.port import Skip
from conformance.port.protocol import Call
from reference.block_config import BlockConfig

GELUS = {"gelu": F.gelu, "gelu_tanh": nn.GELU(approximate="tanh")}
SUMMED = "CPU: the last norm's dbias, which is the sum of dout, is added up in bfloat16"
FIXED = {"norm": "layer_norm", "rope": "none", "qkv_bias": True, "o_bias": True, "feed_forward_bias": True}
NAMES = {
    "attention_norm": "norm1",
    "attention.o": "self_attn.out_proj",
    "ffn_norm": "norm2",
    "feed_forward.up": "linear1",
    "feed_forward.down": "linear2",
}


class EncoderLayer(ports.torch_nn.port.Port):
    """Pre-LN or Post-LN, with biases, as many key heads as query heads, no rope, and no cache."""

    name = "torch.nn encoder layer"
    features = ("placement",)
    rms_norm = layer_norm = batch_norm = attention = swiglu = gelu = None  # pyright: ignore

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        self.may_fail = {} if jit else {"*/post_ln/bfloat16/*": SUMMED}

    def run(self, call: Call, given: dict[str, Any]) -> dict[str, np.ndarray]:
        c = call.settings["config"]
        other = [name for name, value in FIXED.items() if c[name] != value]
        placement = c.get("placement", "pre")
        other += ["placement"] if placement not in ("pre", "post") else []
        if other or c["feed_forward"] not in GELUS or c["n_kv_heads"] != c["n_heads"]:
            raise Skip(f"another {(other or ['feed_forward'])[0]}")
        self.layer = nn.TransformerEncoderLayer(
            c["d_model"],
            c["n_heads"],
            c["d_ff"],
            dropout=0.0,
            activation=GELUS[c["feed_forward"]],
            layer_norm_eps=c["eps"],
            batch_first=True,
            norm_first=placement == "pre",
            device=self.device,
            dtype=given["x"].dtype,
        )
        return super().run(call, given)

    def pre_ln_block(self, x: Tensor, parameters: dict[str, Tensor], *_: Any, config: BlockConfig, **__: Any) -> Tensor:
        mask = None
        if config.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        return functional_call(self.layer, _named(parameters), (x, mask), {"is_causal": config.causal}, strict=True)


def _named(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters by torch's names: those of q, k and v are one."""
    named: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        named[f"self_attn.in_proj_{kind}"] = torch.cat([parameters[f"attention.{name}.{kind}"] for name in "qkv"])
        named |= {f"{NAMES[name]}.{kind}": parameters[f"{name}.{kind}"] for name in NAMES}
    return named
