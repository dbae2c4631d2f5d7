"""What became of an instruction: forgetting taken apart, and vectors along a series of checkpoints."""
