"""What training did to a model: what it forgot, and how its Instruction Vectors changed along its checkpoints."""
