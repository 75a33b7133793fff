"""The head's two walks as kernels for a GPU: matrix products of the vendor's library, and passes in Triton between."""

from .choice import frozen_walk, tiled_walk

__all__ = ["frozen_walk", "tiled_walk"]
