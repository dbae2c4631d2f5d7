"""Instruction Vectors: which heads they are made of, what those write, and their file."""

from ivlens.vectors.vector import InstructionVector

__all__ = [
    "InstructionVector",
]
