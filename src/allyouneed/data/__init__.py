"""Data sets: three texts that come with the package, and assets that are fetched once, checked and kept.

Images are in `allyouneed.data.mnist`, which imports torch; the rest does not.
"""

from .assets import ASSETS, Asset, AssetError, Member, cache_folder, fetch, is_present, verify
from .splits import SPLITS, Split, check_split
from .texts import addresses, austen, corpus, documents, novels, state_of_the_union, verses

__all__ = [
    "ASSETS",
    "SPLITS",
    "Asset",
    "AssetError",
    "Member",
    "Split",
    "addresses",
    "austen",
    "cache_folder",
    "check_split",
    "corpus",
    "documents",
    "fetch",
    "is_present",
    "novels",
    "state_of_the_union",
    "verify",
    "verses",
]
