"""Makes the binary files of the fuzzers' corpus; its texts were written by hand: python tests/fuzz/make_corpus.py"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
from fuzz_readers import fold, small_net, small_solver, workplace

from caffe.io import array_to_blobproto, array_to_datum
from caffe.proto.caffe_pb2 import BlobProto, Datum, NetParameter, SolverState

CORPUS = Path(__file__).parent / "corpus"
RANDOM = np.random.default_rng(0)
PICTURE = cv2.resize(RANDOM.integers(0, 256, (3, 3, 3), np.uint8), (20, 20))


def keep(target: str, name: str, data: bytes) -> None:
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    (CORPUS / target / name).write_bytes(data)


def weights() -> None:
    net = small_net()
    keep("caffemodel", "current", net.to_proto(diff=True).SerializeToString())
    old = NetParameter(name="v1")
    for name, kind in (("conv", "CONVOLUTION"), ("ip", "INNER_PRODUCT")):
        layer = old.layers.add(name=name, type=kind, bottom=["data"], top=[name])
        for blob in net.params[name]:
            proto = layer.blobs.add(data=blob.data.ravel())
            shape = (1,) * (4 - len(blob.shape)) + blob.shape
            proto.num, proto.channels, proto.height, proto.width = shape
    keep("caffemodel", "v1", old.SerializeToString())
    double = NetParameter()
    scale = double.layer.add(name="scale", type="Scale")
    scale.blobs.add(double_data=[1, 2]).shape.dim.append(2)
    scale.blobs.add(data=[3, 4]).shape.dim.append(2)
    keep("caffemodel", "double", double.SerializeToString())
    absurd = NetParameter()
    absurd.layer.add(name="ip", type="InnerProduct").blobs.add().shape.dim.extend([2**40, 2**40])
    keep("caffemodel", "absurd", absurd.SerializeToString())


def states() -> None:
    state = SolverState(iter=3, current_step=1)
    for history in small_solver().history:
        state.history.append(array_to_blobproto(np.full(history.shape, 0.1)))
    keep("solverstate", "caffe", state.SerializeToString())
    state.loss_window.append(0.5)
    state.learned_net = "net.caffemodel"
    state.layer_state.add(layer="drop", random_state=bytes(100))
    state.layer_state.add(layer="data", position=2**63)
    keep("solverstate", "ours", state.SerializeToString())


def means() -> None:
    keep("mean", "current", array_to_blobproto(RANDOM.random((1, 3, 4, 4), np.float32)).SerializeToString())
    keep("mean", "old", BlobProto(num=1, channels=3, height=2, width=2, data=[1.5] * 12).SerializeToString())
    keep("mean", "double", BlobProto(num=1, channels=1, height=1, width=2, double_data=[1, 2]).SerializeToString())
    keep("mean", "absurd", BlobProto(num=1, channels=2**31 - 1, height=2**31 - 1, width=2**31 - 1).SerializeToString())


def hdf5_files() -> None:
    """In HDF5's newest form, which is the smallest, and in its oldest, which Caffe writes."""

    def write(target: str, name: str, arrays: dict[str, object], form: str = "latest", **settings: object) -> None:
        with h5py.File("made.h5", "w", libver=form) as file:
            for key, array in arrays.items():
                file.create_dataset(key, data=array, **settings)
        keep(target, name, Path("made.h5").read_bytes())

    parameters = {f"data/ip/{i}": blob.data for i, blob in enumerate(small_net().params["ip"])}
    write("hdf5_weights", "current", parameters)
    write("hdf5_weights", "oldest", {"data/ip/0": parameters["data/ip/0"]}, "earliest")
    write("hdf5_weights", "packed", parameters, compression="gzip", shuffle=True, fletcher32=True)
    numbers = {
        "iter": [4],
        "current_step": [0],
        "history/0": np.ones((1, 2)),
        "learned_net": np.bytes_("net.caffemodel.h5"),
    }
    write("hdf5_state", "caffe", numbers)
    layer = {"layer_state/0/layer": np.bytes_("drop"), "layer_state/0/random_state": np.zeros(9, np.uint8)}
    write("hdf5_state", "ours", {**numbers, **layer})
    write("hdf5_state", "losses", {**numbers, "loss_window": np.ones(1, "f4"), "layer_state/0/position": 3})
    rows = {"data": np.arange(12.0).reshape(3, 2, 2), "label": np.arange(3)}
    write("hdf5_data", "current", rows)
    write("hdf5_data", "oldest", rows, "earliest")
    write("hdf5_data", "packed", rows, chunks=True, compression="gzip")
    write("hdf5_data", "lzf", {key: np.float16(value) for key, value in rows.items()}, compression="lzf")
    with h5py.File("made.h5", "w", libver="latest") as file:
        file.create_dataset("data", (2**40, 2**20), "f4", chunks=(1, 1024))
        file.create_dataset("label", (2**40,), "f4", chunks=(1024,))
    keep("hdf5_data", "absurd", Path("made.h5").read_bytes())


def databases() -> None:
    small = RANDOM.integers(0, 256, (12, 1, 3, 3), np.uint8)
    png = cv2.imencode(".png", PICTURE[:4, :4])[1].tobytes()
    records = {
        "one": [array_to_datum(small[0], 3)],
        "leaf": [array_to_datum(image, i) for i, image in enumerate(small)],
        "own_pages": [Datum(channels=1, height=50, width=100, data=bytes(5000), label=i) for i in range(2)],
        "encoded": [Datum(encoded=True, data=png, label=i) for i in range(3)],
        "odd": [array_to_datum(small[0]), Datum(), array_to_datum(small[0] / 3), array_to_datum(small[:1, 0])],
        "levels": [Datum(channels=1, height=1, width=1, data=b"x", label=i) for i in range(130)],
    }
    for name, datums in records.items():
        with lmdb.open(name, lock=False, writemap=True) as env, env.begin(write=True) as transaction:
            for i, datum in enumerate(datums):
                transaction.put(b"%03d" % i, datum.SerializeToString(), append=True)
        keep("lmdb", name, fold(Path(name, "data.mdb").read_bytes()))


def images() -> None:
    pictures = {
        "png": PICTURE,
        "alpha.png": np.dstack([PICTURE, PICTURE[..., :1]]),
        "16bit.png": PICTURE.astype(np.uint16) * 257,
        "jpg": PICTURE,
        "progressive.jpg": PICTURE,
        "bmp": PICTURE,
        "gif": PICTURE,
        "webp": PICTURE,
        "lossless.webp": PICTURE,
        "tiff": PICTURE,
        "ppm": PICTURE,
        "pam": PICTURE,
        "ras": PICTURE,
        "hdr": PICTURE.astype(np.float32),
        "jp2": cv2.resize(PICTURE, (64, 64)),
    }
    settings = {
        "progressive.jpg": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        "lossless.webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
        "jp2": [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 30],
    }
    for name, picture in pictures.items():
        data = cv2.imencode(f".{name.split('.')[-1]}", picture, settings.get(name, []))[1].tobytes()
        keep("image", name, data)
    run_lengths = struct.pack("<IiiHHII16x", 40, 30000, 30000, 1, 8, 1, 0) + bytes(1024) + b"\0\1"
    keep("image", "absurd.bmp", b"BM" + struct.pack("<III", 0, 0, 1078) + run_lengths)
    png = bytearray(cv2.imencode(".png", PICTURE[:3, :3])[1].tobytes())
    png[16:24] = struct.pack(">II", 30000, 30000)
    keep("image", "absurd.png", bytes(png))
    keep("image", "without.png", cv2.imencode(".png", PICTURE[:3, :3])[1].tobytes().replace(b"IDAT", b"abcd"))
    keep("image", "absurd.tiff", b"II+\0" + struct.pack("<HHQ", 8, 0, 2**64 - 1))  # its directory is beyond any file


def datums() -> None:
    keep("datum", "bytes", array_to_datum(PICTURE[None, :4, :5, 0], 3).SerializeToString())
    keep("datum", "floats", array_to_datum(np.ones((2, 2, 3)) / 3).SerializeToString())
    png = cv2.imencode(".png", PICTURE[:4, :4])[1].tobytes()
    keep("datum", "encoded", Datum(encoded=True, data=png, label=2).SerializeToString())
    keep("datum", "absurd", Datum(channels=2**31 - 1, height=2**31 - 1, width=2, data=b"x").SerializeToString())


if __name__ == "__main__":
    with workplace(), tempfile.TemporaryDirectory(dir=".") as folder:
        for make in (weights, states, means):
            make()
        import os

        os.chdir(folder)
        for make in (hdf5_files, databases, images, datums):
            make()
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    print(f"{len(sizes)} files, {sum(sizes)} bytes, the largest {max(sizes)}")
    sys.exit(max(sizes) >= 4096 or sum(sizes) >= 200 * 1024)
