"""BatchNorm (Ioffe & Szegedy 2015, arXiv:1502.03167) for PyTorch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from impl_torch.rows import check_rows, compute_dtype, sum_rows


def batch_norm(
    x: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None,
    bias: Float[Tensor, " d"] | None,
    running_mean: Float[Tensor, " d"],
    running_var: Float[Tensor, " d"],
    *,
    eps: float = 1e-5,
    training: bool = False,
    momentum: float = 0.1,
    unbiased: bool = True,
) -> Float[Tensor, "*batch d"] | tuple[Float[Tensor, "*batch d"], Float[Tensor, " d"], Float[Tensor, " d"]]:
    r"""Centre every feature and divide it by its standard deviation, over the batch or as it ran so far; scale and shift.

    $$ y_i = w_i\, \hat x_i + b_i, \qquad \hat x_i = (x_i - \mu_i) / \sqrt{\sigma^2_i + \varepsilon} $$

    x is [*batch, d], features last; weight and bias [d] or None, running_mean and running_var [d]. In training, returns y and
    new running statistics, (1 − momentum)·old + momentum·new, of the variance divided by R − 1 for R rows, or by R with
    `unbiased=False`; those given are not changed. In evaluation, returns y, normalised by the running statistics.
    Statistics and sums are in float32 (float64 for float64), forward and backward; y has x's dtype.

    Raises `TypeError` for an x that is not of floating point; `ValueError` for a shape that does not fit, and for a training
    batch of too few rows.
    """
    check_rows(x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    rows = x.numel() // x.shape[-1]
    if training and rows < 1 + unbiased:
        raise ValueError(f"x has shape {list(x.shape)}: {rows} rows are too few to train on with unbiased={unbiased}")
    wide = x.to(compute_dtype(x))  # *batch d
    mean = sum_rows(wide) / rows if training else running_mean  # d
    centred = wide - mean  # *batch d
    squares = sum_rows(centred.square()) if training else None  # d
    var = running_var if squares is None else squares / rows  # d
    y = centred * torch.rsqrt(var + eps)  # *batch d
    if weight is not None:
        y = y * weight  # *batch d
    if bias is not None:
        y = y + bias  # *batch d
    y = y.to(x.dtype)
    if squares is None:
        return y
    # Not `var * (rows / (rows - 1))`: where sizes are symbols, a kernel for a GPU divides the two integers in float32.
    kept = squares / (rows - 1 if unbiased else rows)  # d
    new_mean = running_mean + momentum * (mean.detach() - running_mean)  # d
    new_var = running_var + momentum * (kept.detach() - running_var)  # d
    return y, new_mean, new_var


class BatchNorm(nn.Module):
    """`batch_norm` over the last axis, of `num_features`, which keeps its running statistics; y has x's shape and dtype.

    `torch.nn.BatchNorm1d` has its features on axis 1; its state_dict loads here.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        unbiased: bool = True,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.unbiased = num_features, eps, momentum, unbiased
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Normalise x of shape [*batch, num_features]; in training the running statistics move. Raises as `batch_norm` does."""
        given = x, self.weight, self.bias, self.running_mean, self.running_var
        if not self.training:
            y = batch_norm(*given, eps=self.eps)
            assert isinstance(y, Tensor)
            return y
        y, mean, var = batch_norm(*given, eps=self.eps, training=True, momentum=self.momentum, unbiased=self.unbiased)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.get_buffer("num_batches_tracked").add_(1)
        return y

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, unbiased={self.unbiased}"
