"""How the built-in model is made and measured: its texts, its training, its card. Its weights are in `ivlens/data`."""
