"""A training of the built-in model that takes seconds, for tests in any folder."""

from ivlens.pocket.train import TrainConfig

TINY = TrainConfig(
    steps=4, n_layers=2, n_heads=2, d_model=16, d_mlp=32, rows=4, length=96, head_dropout=0.1, compile=False
)
