"""The published layouts of data sets of facial expressions: which images there are, and what each one shows.

A reader lists a data set's images, with emotions by name, without opening one; `extract` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from preprocessing.layouts.affectnet import read_affectnet
from preprocessing.layouts.ckplus import FRAMES, read_ckplus
from preprocessing.layouts.folder import list_images, read_folder
from preprocessing.layouts.listing import Box, Item, Listing, canonical
from preprocessing.layouts.rafdb import read_rafdb

__all__ = ["FRAMES", "LAYOUTS", "Box", "Item", "Listing", "canonical", "list_images", "read_layout"]

LAYOUTS = ("fer2013", "ckplus", "rafdb", "affectnet", "folder")
_READERS: dict[str, Callable[[Path], Listing]] = {"rafdb": read_rafdb, "affectnet": read_affectnet}


def read_layout(
    source: Path, layout: str, frames: int = FRAMES, neutral: bool = False, classes: Sequence[str] = ()
) -> Listing:
    """What the folder `source` holds in one of LAYOUTS (fer2013's folder form is `folder`); see the readers."""
    if layout == "ckplus":
        return read_ckplus(source, frames, neutral)
    return _READERS[layout](source) if layout in _READERS else read_folder(source, classes)
