"""Broken LMDBs: what the LMDB library would follow beyond the file, or in circles, is found before."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

import caffe
from caffe.database import write_lmdb
from caffe.io import DatumReader, array_to_datum
from caffe.lmdb_pages import LmdbPages

PAGE = 4096
RECORDS = 300


def database(path: Path, count: int = RECORDS, size: int = 6) -> Path:
    """An LMDB of grey images size×size: of 6, several leaves; of 90, values with pages of their own."""
    images = np.random.default_rng(0).integers(0, 256, (count, 1, size, size), np.uint8)
    write_lmdb(path, ((b"%08d" % i, array_to_datum(image, i).SerializeToString()) for i, image in enumerate(images)))
    return path


def root_of(data: bytes | bytearray) -> int:
    """The page number of the root, from the newer of the first two pages."""
    newer = max((0, PAGE), key=lambda at: struct.unpack_from("<Q", data, at + 144)[0])
    return struct.unpack_from("<Q", data, newer + 128)[0]


def both_metas(at: int, form: str, value: int) -> Callable[[bytearray], None]:
    def damage(data: bytearray) -> None:
        for page in (0, PAGE):
            struct.pack_into(form, data, page + at, value)

    return damage


def in_root(at: int, form: str, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(form, data, root_of(data) * PAGE + at, value)


def in_leaf(at: int, form: str, value: int) -> Callable[[bytearray], None]:
    """In the leaf that the root's first node leads to."""

    def damage(data: bytearray) -> None:
        root = root_of(data) * PAGE
        node = root + struct.unpack_from("<H", data, root + 16)[0]
        struct.pack_into(form, data, struct.unpack_from("<I", data, node)[0] * PAGE + at, value)

    return damage


def in_node(at: int, form: str, value: int, page: str = "leaf") -> Callable[[bytearray], None]:
    """In the first node of that leaf, or of the root."""

    def damage(data: bytearray) -> None:
        start = root_of(data) * PAGE
        node = start + struct.unpack_from("<H", data, start + 16)[0]
        if page == "leaf":
            start = struct.unpack_from("<I", data, node)[0] * PAGE
            node = start + struct.unpack_from("<H", data, start + 16)[0]
        struct.pack_into(form, data, node + at, value)

    return damage


def circle(data: bytearray) -> None:
    in_node(0, "<I", root_of(data), "root")(data)


def twice(data: bytearray) -> None:
    """All nodes of the root lead to the same leaf."""
    root = root_of(data) * PAGE
    lower = struct.unpack_from("<H", data, root + 12)[0]
    nodes = [root + at for (at,) in struct.iter_unpack("<H", data[root + 16 : root + lower])]
    for node in nodes:
        data[node : node + 4] = data[nodes[0] : nodes[0] + 4]


@pytest.mark.parametrize("size", [0, 1, PAGE // 2, PAGE - 16, PAGE - 15, 3 * PAGE])
def test_a_value_up_to_the_files_last_page(tmp_path: Path, size: int) -> None:
    value = np.random.default_rng(size).bytes(size)
    write_lmdb(tmp_path / "db", iter([(b"key", value)]))
    pages = LmdbPages(tmp_path / "db/data.mdb", "db")
    assert pages.meta.last_page == (2 if size < 2 else 2 + -(-(size + 16) // PAGE))
    assert list(pages.records()) == [(b"key", value)]


@pytest.mark.parametrize("size", [6, 90])
def test_whole_databases_have_all_their_records(tmp_path: Path, size: int) -> None:
    source = database(tmp_path / "db", size=size)
    pages = LmdbPages(source / "data.mdb", "db")
    assert len(list(pages.records())) == pages.meta.entries == RECORDS
    found = list(DatumReader(source).items())
    with lmdb.open(str(source), readonly=True, lock=False) as env, env.begin() as transaction:
        assert found == list(transaction.cursor())


def test_real_caffes_databases(shared: Path) -> None:
    for source in sorted((shared / "caffe_golden").glob("*_lmdb")):
        pages = LmdbPages(source / "data.mdb", source.name)
        assert len(list(pages.records())) == pages.meta.entries > 0


@pytest.mark.parametrize("count", [1, 2, 30])
def test_databases_of_one_leaf(tmp_path: Path, count: int) -> None:
    assert len(DatumReader(database(tmp_path / "db", count)).keys()) == count


def test_an_empty_database(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", [])
    assert list(LmdbPages(tmp_path / "db" / "data.mdb", "db").records()) == []
    with pytest.raises(caffe.CaffeError, match="the database has no records"):
        DatumReader(tmp_path / "db")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (both_metas(16, "<I", 1), "no LMDB's first pages, at byte 0"),
        (both_metas(20, "<I", 999), "no LMDB's first pages"),
        (both_metas(40, "<I", 0), "no LMDB's first pages"),
        (both_metas(40, "<I", 1 << 31), "no LMDB's first pages"),
        (lambda data: data.__setitem__(slice(PAGE, 2 * PAGE), bytes(PAGE)), "no LMDB's first pages, at byte 4096"),
        (lambda data: data.__delitem__(slice(50, None)), "ends at byte 50, within a page"),
        (lambda data: data.__delitem__(slice(-1, None)), "cut off: .* expected"),
        (both_metas(136, "<Q", 2**62), "cut off: .* expected"),
        (both_metas(92, "<H", 4), "its first pages say what cannot be: .*flags=4"),
        (both_metas(120, "<Q", 2**40), "its first pages say what cannot be: .*entries=1099511627776"),
        (both_metas(120, "<Q", 0), "its first pages say what cannot be"),
        (both_metas(128, "<Q", 2**64 - 1), "its first pages say what cannot be"),
        (both_metas(94, "<H", 999), "its first pages say what cannot be: .*depth=999"),
        (both_metas(120, "<Q", RECORDS + 1), f"has {RECORDS} records, and says that there are {RECORDS + 1}"),
        (both_metas(120, "<Q", RECORDS - 1), r"page \d+: with it there are more pages or records than the file has"),
        (both_metas(128, "<Q", 1), "page 1 is asked for; the last one is"),
        (both_metas(128, "<Q", 10**6), "page 1000000 is asked for; the last one is"),
        (both_metas(94, "<H", 1), r"page \d+ is no leaf"),
        (both_metas(94, "<H", 3), r"page \d+ is no branch"),
        (in_root(10, "<H", 2), r"page \d+ is no branch"),
        (in_root(12, "<H", 18), r"page \d+ is no branch"),  # of one node
        (in_root(12, "<H", 21), r"page \d+ is no branch"),
        (in_root(14, "<H", 65000), r"page \d+ is no branch"),
        (in_root(16, "<H", 4094), r"page \d+ has a node that is not in it"),
        (in_root(16, "<H", 18), r"page \d+ has a node that is not in it"),
        (in_root(16, "<H", 4087), r"page \d+ has a node that is not in it"),  # nodes begin at even places
        (in_leaf(10, "<H", 0x22), r"page \d+ is no leaf"),
        (in_leaf(12, "<H", 16), r"page \d+ is no leaf"),  # of no node
        (in_leaf(16, "<H", 65534), r"page \d+ has a node that is not in it"),
        (in_node(0, "<I", 10**6, "root"), "page 1000000 is asked for; the last one is"),
        (in_node(4, "<H", 1, "root"), r"page \d+ is asked for; the last one is"),
        (in_node(6, "<H", 65000, "root"), r"page \d+ has a key that is not in it"),
        (in_node(0, "<I", 5000), r"page \d+ has a record that is not in it"),
        (in_node(6, "<H", 65000), r"page \d+ has a record that is not in it"),
        (in_node(4, "<H", 1), r"page \d+ has a record whose pages are not in the file"),
        (in_node(4, "<H", 4), r"page \d+ has nodes of flags 4"),
        (circle, r"page \d+ is no leaf"),
        (twice, r"has \d+ records|more pages or records than the file has|is no leaf"),
    ],
)  # fmt: skip
def test_broken_databases(tmp_path: Path, damage: Callable[[bytearray], None], message: str) -> None:
    path = database(tmp_path / "db") / "data.mdb"
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    with pytest.raises(
        caffe.CaffeError, match=rf"/db: (not an LMDB that can be read \(data.mdb: |its data.mdb is )?{message}"
    ):
        list(DatumReader(tmp_path / "db").items())


def test_values_that_would_be_read_twice(tmp_path: Path) -> None:
    """Values that share their pages: a small file would be as large as it likes."""
    path = database(tmp_path / "db", 20, 90) / "data.mdb"
    data = bytearray(path.read_bytes())
    root = root_of(data) * PAGE
    (at,) = struct.unpack_from("<H", data, root + 16)
    struct.pack_into("<I", data, root + at, PAGE * 30)  # the first value's size, of 63 pages that there are
    path.write_bytes(data)
    with pytest.raises(caffe.CaffeError, match="more pages or records than the file has"):
        list(DatumReader(tmp_path / "db").items())


@pytest.mark.parametrize("where", [(0, 2 * PAGE), (2 * PAGE, None)])
def test_noise_never_ends_the_process(tmp_path: Path, where: tuple[int, int | None]) -> None:
    path = database(tmp_path / "db") / "data.mdb"
    whole, random = path.read_bytes(), np.random.default_rng(1)
    refused = 0
    for i in range(150):
        data = bytearray(whole)
        first, last = where[0], where[1] or len(data)
        for at in random.integers(first, last, 40):
            data[at] = random.integers(256)
        folder = tmp_path / f"noise{i}"
        folder.mkdir()
        (folder / "data.mdb").write_bytes(data)
        try:
            DatumReader(folder).read_all()
        except caffe.CaffeError:
            refused += 1
    assert refused > 20
