"""The records of an LMDB, read from its data.mdb one after another, without the LMDB library.

The library takes page numbers, offsets and sizes from the file as they stand: a broken one reads beyond the file or in
circles, or ends the process. And it opens an LMDB once in a process, where a script may have it open beside the net.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np

from .errors import CaffeError

# The format of LMDB 0.9 on 64 bits, in the machine's own byte order. A page: its number, padding, kind, where the list
# of its nodes' offsets ends and where the nodes begin. The first two pages: magic, version, page size; of the main
# database its flags, levels, records and first page; the last page, the transaction. A node: in a branch three words
# of a page's number, in a leaf two of its value's size and one of flags; the size of its key, the key, and in a leaf
# the value, or where it has pages of its own the number of the first.
PAGE = struct.Struct("=QHHHH")
META = struct.Struct("=II16xI44x4xHH24xQQQQ")
MAGIC, VERSION = 0xBEEFC0DE, 1
PAGE_HEADER, NODE_HEADER = PAGE.size, 8
BRANCH, LEAF, META_PAGE = 1, 2, 8  # kinds of pages, and
KINDS = 0x6F  # the bits that tell them
OWN_PAGES = 1  # of a node: its value has pages of its own
OTHER_ORDERS = 0x0A  # of the database: keys compared from the end, or as numbers; that changes nothing in a page
EMPTY = 2**64 - 1  # the root of a database without records
MOST_LEVELS = 32  # of the library
PAGE_SIZES = [2**i for i in range(9, 17)]


class Meta(NamedTuple):
    """What the file says of itself: the newer of its first two pages.

    Attributes
    ----------
    page_size: bytes of a page.
    flags, depth, entries, root: of the main database: how it is ordered, levels of pages, records, the first page.
    last_page: the highest number of a page.
    transaction: its number; the newer page has the higher one.
    """

    page_size: int
    flags: int
    depth: int
    entries: int
    root: int
    last_page: int
    transaction: int


class LmdbPages:
    """A data.mdb, opened for reading.

    Parameters
    ----------
    path: of the file.
    source: the database's name in errors.

    Attributes
    ----------
    meta: what the file says of itself.

    Raises
    ------
    CaffeError: the file is not there, is no LMDB, or is shorter than it says.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        try:
            with open(path, "rb", buffering=0) as file:
                first = self._meta(file, 0)
                metas = [first, self._meta(file, first.page_size)]
                self.meta = metas[metas[0].transaction < metas[1].transaction]
                size = file.seek(0, os.SEEK_END)
        except OSError as error:
            self._fail(str(error.strerror))
        meta = self.meta
        needed = (meta.last_page + 1) * meta.page_size
        if size < needed:
            raise CaffeError(f"{source}: its data.mdb is cut off: {size} bytes; expected {needed}")
        most = needed // (NODE_HEADER + 2)  # each has a node and its offset
        if (
            metas[0].page_size != metas[1].page_size
            or meta.flags & ~OTHER_ORDERS
            or (meta.root == EMPTY) != (meta.entries == 0)
            or meta.entries > most
            or meta.depth > MOST_LEVELS
        ):
            self._fail(f"its first pages say what cannot be: {meta}")

    def _fail(self, what: str) -> NoReturn:
        raise CaffeError(f"{self.source}: not an LMDB that can be read (data.mdb: {what})")

    def _read(self, file: BinaryIO, offset: int, size: int) -> bytes:
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            self._fail(f"ends at byte {offset + len(data)}, within a page")
        return data

    def _meta(self, file: BinaryIO, offset: int) -> Meta:
        data = self._read(file, offset, PAGE_HEADER + META.size)
        kind = PAGE.unpack_from(data)[2]
        magic, version, page_size, flags, depth, entries, root, last_page, transaction = META.unpack_from(
            data, PAGE_HEADER
        )
        if kind & KINDS != META_PAGE or magic != MAGIC or version != VERSION or page_size not in PAGE_SIZES:
            self._fail(f"no LMDB's first pages, at byte {offset}")
        return Meta(page_size, flags, depth, entries, root, last_page, transaction)

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """The keys and values of all records in order; each page was checked before its records come.

        Raises CaffeError naming the page that is not what it must be, where there are more pages or records than the
        file can have, as when one is reached twice, and at the end where there are fewer records than it says.
        """
        if self.meta.root == EMPTY:
            return
        with open(self.path, "rb", buffering=0) as file:
            # pages still to come, the next one last, with their levels
            waiting = [(self.meta.root, 1)]
            records = used = 0
            while waiting:
                number, level = waiting.pop()
                is_leaf = level == self.meta.depth
                nodes = self._nodes(file, number, LEAF if is_leaf else BRANCH)
                used += 1
                if is_leaf:
                    used += self._value_pages(number, nodes)
                    records += len(nodes.offsets)
                else:
                    waiting += [(child, level + 1) for child in reversed(self._children(number, nodes))]
                if used + len(waiting) > self.meta.last_page + 1 or records > self.meta.entries:
                    self._fail(f"page {number}: with it there are more pages or records than the file has")
                if is_leaf:
                    yield from self._leaf_records(file, nodes)
        if records != self.meta.entries:
            self._fail(f"has {records} records, and says that there are {self.meta.entries}")

    def _leaf_records(self, file: BinaryIO, nodes: Nodes) -> Iterator[tuple[bytes, bytes]]:
        """The records of a leaf."""
        page = nodes.page
        columns = (column.tolist() for column in (nodes.offsets, nodes.ends, nodes.low, nodes.high))
        for offset, end, size, flags in zip(*columns, strict=True):
            key = page[offset + NODE_HEADER : end]
            if flags == OWN_PAGES:
                first = int.from_bytes(page[end : end + 8], sys.byteorder)
                yield key, self._read(file, first * self.meta.page_size + PAGE_HEADER, size)
            else:
                yield key, page[end : end + size]

    def _nodes(self, file: BinaryIO, number: int, kind: int) -> Nodes:
        """The nodes of a page, which lie within it; CaffeError for a page of another kind or one that is broken."""
        size = self.meta.page_size
        if not 2 <= number <= self.meta.last_page:
            self._fail(f"page {number} is asked for; the last one is {self.meta.last_page}")
        page = self._read(file, number * size, size)
        _, _, found, lower, upper = PAGE.unpack_from(page)
        count = (lower - PAGE_HEADER) // 2
        fewest = 1 if kind == LEAF else 2
        if found & KINDS != kind or lower % 2 or not PAGE_HEADER <= lower <= upper <= size or count < fewest:
            self._fail(f"page {number} is no {'leaf' if kind == LEAF else 'branch'}")
        offsets = np.frombuffer(page, np.uint16, count, PAGE_HEADER).astype(np.int64)
        if (offsets % 2).any() or offsets.min() < upper or offsets.max() > size - NODE_HEADER:
            self._fail(f"page {number} has a node that is not in it")
        words = np.frombuffer(page, np.uint16).astype(np.int64)
        low, middle, high, key_size = (words[offsets // 2 + i] for i in range(4))
        return Nodes(page, offsets, low | middle << 16, high, offsets + NODE_HEADER + key_size)

    def _children(self, number: int, nodes: Nodes) -> list[int]:
        """The pages that a branch leads to."""
        if (nodes.ends > self.meta.page_size).any():
            self._fail(f"page {number} has a key that is not in it")
        return (nodes.low | nodes.high << 32).tolist()

    def _value_pages(self, number: int, nodes: Nodes) -> int:
        """How many pages the values of a leaf have for their own; CaffeError for a value that is not in the file."""
        own = nodes.high == OWN_PAGES
        if (nodes.high & ~OWN_PAGES).any():
            self._fail(f"page {number} has nodes of flags {nodes.high.max()}, which Caffe's databases have not")
        if (nodes.ends + np.where(own, 8, nodes.low) > self.meta.page_size).any():
            self._fail(f"page {number} has a record that is not in it")
        pages = -(-(PAGE_HEADER + nodes.low[own]) // self.meta.page_size)
        first = np.array([int.from_bytes(nodes.page[at : at + 8], sys.byteorder) for at in nodes.ends[own]], np.uint64)
        last = self.meta.last_page
        if ((first < 2) | (first > last) | (first + pages.astype(np.uint64) > last + 1)).any():
            self._fail(f"page {number} has a record whose pages are not in the file")
        return int(pages.sum())


class Nodes(NamedTuple):
    """The nodes of a page: where they begin, the low 32 bits of their value's size or of their page's number, the 16
    bits that follow (a leaf's flags), and where their keys end."""

    page: bytes
    offsets: np.ndarray
    low: np.ndarray
    high: np.ndarray
    ends: np.ndarray
