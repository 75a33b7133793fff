"""What the reference said about every response token, on disk: computed once, shared by every run that asks again."""

from .building import CachePlan, build_cache
from .fingerprint import Fingerprint, model_digest
from .storage import BrokenCache, CacheLayout, Field, ForeignCache, ReferenceCache

__all__ = [
    "BrokenCache",
    "CacheLayout",
    "CachePlan",
    "Field",
    "Fingerprint",
    "ForeignCache",
    "ReferenceCache",
    "build_cache",
    "model_digest",
]
