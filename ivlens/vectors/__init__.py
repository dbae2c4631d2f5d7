"""Instruction Vectors: the heads they are made of, what these heads write, and the files of vectors."""

from ivlens.vectors.vector import InstructionVector

__all__ = [
    "InstructionVector",
]
