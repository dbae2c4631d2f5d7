"""A store keeps results on disk: found by what they were made from, written whole, checked whenever they are read."""

from ivlens.common.store.care import collect_garbage, export, verify
from ivlens.common.store.entries import DamagedEntry, Entry
from ivlens.common.store.errors import StoreError
from ivlens.common.store.keys import canonical, content_key
from ivlens.common.store.store import Finding, Store

__all__ = [
    "DamagedEntry",
    "Entry",
    "Finding",
    "Store",
    "StoreError",
    "canonical",
    "collect_garbage",
    "content_key",
    "export",
    "verify",
]
