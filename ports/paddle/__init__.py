"""PaddlePaddle's layers as they ship."""
