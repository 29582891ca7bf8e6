"""Fuzz targets for everything that the engine reads: whatever stands in a file, a reader raises CaffeError or nothing.

python tests/fuzz/fuzz_readers.py TARGET [libFuzzer options] tests/fuzz/corpus/TARGET

As a fuzzer it needs the package atheris; without an option it runs until something breaks. `-runs=20000` ends it after
so many inputs, `-timeout=10` takes more than ten seconds for a hang; what broke lies in `crash-…`, which given in the
corpus' place is run alone. tests/caffe/test_fuzz.py runs the targets on the corpus and on a few hundred changes of it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    import atheris

    instrumented: contextlib.AbstractContextManager = atheris.instrument_imports(
        include=["caffe", "google.protobuf.text_format"]
    )
else:
    instrumented = contextlib.nullcontext()

with instrumented:
    import caffe
    from caffe.context import memory_limit
    from caffe.database import write_lmdb
    from caffe.filler import FILLERS
    from caffe.image_io import load_image
    from caffe.io import DatumReader, array_to_datum, load_mean, read_net_parameter, read_solver_parameter, save_mean
    from caffe.proto.caffe_pb2 import BlobProto, Datum, NetParameter, SolverParameter, SolverState
    from caffe.solver import learning_rate

import cv2
import h5py
import numpy as np
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

MEMORY_LIMIT = 32 << 20  # of a net that is made here
MEMORY_GROWTH = 256 << 20  # bytes that the process may come to use for an input, and
SPACE_GROWTH = 1 << 30  # those that it may ask for, for all
FILES = ["list", "windows", "mean", "rows", "db", "net", "net.caffemodel", "net.caffemodel.h5"]  # for nets to read
MOST_VALUES = 100_000  # of a net's blobs; larger nets are made but not run

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}
MESSAGES: dict[str, type[Message]] = {}  # of the targets whose input is one, as text or binary


def target(message: type[Message] | None = None) -> Callable[[Target], Target]:
    """Make a function a target: the errors that the engine documents are no finding, as long as they say something."""

    def add(function: Target) -> Target:
        def run(data: bytes) -> None:
            with workplace():
                try:
                    function(data)
                except caffe.CaffeError as error:
                    if not str(error):
                        raise AssertionError("an error without a word") from error

        run.__name__ = function.__name__
        TARGETS[function.__name__] = run
        if message is not None:
            MESSAGES[function.__name__] = message
        return run

    return add


# What the targets work in and with


@cache
def folder() -> Path:
    """A folder with a file of each kind that a net may name."""
    made = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 6, 6, 3), np.uint8)
    for i, image in enumerate(images):
        cv2.imwrite(str(made / f"{i}.png"), image)
    (made / "list").write_text("0.png 0\n1.png 1\n2.png 2\n")
    (made / "windows").write_text("# 0\n0.png\n3\n6\n6\n2\n1 0.9 0 0 4 4\n0 0.1 1 1 5 5\n")
    save_mean(made / "mean", images[0].transpose(2, 0, 1).astype(np.float32))
    with h5py.File(made / "rows.h5", "w") as file:
        file["data"], file["label"] = rng.random((5, 2, 3)), np.arange(5.0)
    (made / "rows").write_text("rows.h5\n")
    write_lmdb(made / "db", ((b"%d" % i, array_to_datum(image.transpose(2, 0, 1), i).SerializeToString())
                             for i, image in enumerate(images)))  # fmt: skip
    (made / "net").write_text(SMALL_NET)
    net = caffe.Net(str(made / "net"), caffe.TEST, seed=1)
    net.save(made / "net.caffemodel")
    net.save_hdf5(made / "net.caffemodel.h5")
    return made


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """That folder as the working directory, with the limits that hold in it."""
    before, limit = os.getcwd(), memory_limit()
    caffe.set_memory_limit(2**31)
    os.chdir(folder())
    caffe.set_memory_limit(MEMORY_LIMIT)
    caffe.set_random_seed(1)
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
        caffe.set_memory_limit(limit)
        os.chdir(before)
        if threading.active_count() > 30:  # those of data layers, which end with their nets
            gc.collect()


def written(name: str, data: bytes) -> str:
    """The input as a file, new each time: HDF5 and LMDB know a file again that they have seen."""
    Path(name).unlink(missing_ok=True)
    Path(name).write_bytes(data)
    return name


SMALL_NET = """name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 1 dim: 5 dim: 5 } } }
layer { name: "label" type: "DummyData" top: "label" dummy_data_param { shape { dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
# of one parameter, so that a state is small
TINY_SOLVER = """base_lr: 0.1 lr_policy: "step" stepsize: 5 momentum: 0.9 net_param {
layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 3 dim: 2 } } }
layer { name: "drop" type: "Dropout" bottom: "data" top: "data" }
layer { name: "tiny" type: "InnerProduct" bottom: "data" top: "tiny"
  inner_product_param { num_output: 1 bias_term: false } }
layer { name: "loss" type: "Reduction" bottom: "tiny" top: "loss" loss_weight: 1 } }
"""
SMALL_SOLVER = 'net: "net" type: "Adam" base_lr: 0.1 lr_policy: "step" stepsize: 5 gamma: 0.5 max_iter: 9'


@cache
def small_net() -> caffe.Net:
    return caffe.Net("net", caffe.TEST, seed=1)


@cache
def small_solver() -> caffe.Solver:
    return caffe.get_solver(text_format.Parse(SMALL_SOLVER, SolverParameter()))


@cache
def tiny_solver() -> caffe.Solver:
    return caffe.get_solver(text_format.Parse(TINY_SOLVER, SolverParameter()))


def may_be_made(message: Message) -> bool:
    """Not a net that would run Python, or write or read a file elsewhere: both are what it asks for."""
    return not any(
        (isinstance(value, str) and (value == "Python" or "/" in value or value.startswith(".")))
        or (field.name == "file_name" and value in FILES)
        for part in parts(message)
        for field, values in part.ListFields()
        for value in (values if field.is_repeated else [values])
    )


def values_of(net: caffe.Net) -> int:
    """How many a forward pass makes, those of the images that ImageData enlarges among them."""
    enlarged = (layer.param.image_data_param for layer in net.layers)
    return sum(blob.count for blob in net.blobs.values()) + sum(9 * p.new_height * p.new_width for p in enlarged)


def run_if_small(net: caffe.Net) -> None:
    """A forward pass, and a backward pass, of a net that is small: it must be as safe as to make it."""
    if values_of(net) < MOST_VALUES:
        net.forward()
        if net.needs_backward:
            net.backward()


# The targets


@target(NetParameter)
def net_text(data: bytes) -> None:
    """A prototxt in any of Caffe's forms, and the nets that it describes."""
    if may_be_made(read_net_parameter(written("in.prototxt", data))):
        for phase in (caffe.TRAIN, caffe.TEST):
            run_if_small(caffe.Net("in.prototxt", phase))


@target(SolverParameter)
def solver_text(data: bytes) -> None:
    """A solver's prototxt, the solver, and its rate."""
    param = read_solver_parameter(written("in.prototxt", data))
    for iteration in (0, 1, 1000, 2**31 - 1):
        learning_rate(param, iteration)
    if may_be_made(param):
        solver = caffe.get_solver("in.prototxt")
        nets = [solver.net, *solver.test_nets]
        if sum(map(values_of, nets)) < MOST_VALUES:
            solver.param.iter_size = min(solver.param.iter_size, 2)
            solver.param.test_iter[:] = [min(count, 2) for count in solver.param.test_iter]
            solver.param.snapshot = 0
            solver.step(2)


@target(NetParameter)
def caffemodel(data: bytes) -> None:
    """A .caffemodel of any of Caffe's forms, into a small net."""
    small_net().copy_from(written("in.caffemodel", data))
    small_net().forward()


@target(SolverState)
def solverstate(data: bytes) -> None:
    """A .solverstate, and training that goes on from there."""
    small_solver().restore(written("in.solverstate", data))
    small_solver().step(1)


@target(BlobProto)
def mean(data: bytes) -> None:
    """A mean image's .binaryproto."""
    load_mean(written("in.binaryproto", data))


@target(Datum)
def datum(data: bytes) -> None:
    """A record of a database, decoded in each way."""
    for color, grey in ((False, False), (True, False), (False, True)):
        DatumReader("db", color, grey).decode(b"key", data)


@target()
def image(data: bytes) -> None:
    """An image file, as data layers and as scripts read it."""
    with contextlib.suppress(caffe.CaffeError):
        DatumReader("db").decode(b"key", Datum(encoded=True, data=data).SerializeToString())
    load_image(written("in.image", data))


@target()
def hdf5_weights(data: bytes) -> None:
    """A .caffemodel.h5, into a small net."""
    small_net().load_hdf5(written("in.caffemodel.h5", data))
    small_net().forward()


@target()
def hdf5_state(data: bytes) -> None:
    """A .solverstate.h5, and training that goes on from there."""
    tiny_solver().restore(written("in.solverstate.h5", data))
    tiny_solver().step(1)


@target()
def hdf5_data(data: bytes) -> None:
    """A file that an HDF5Data layer reads."""
    written("in.h5", data)
    written("in.rows", b"in.h5\n")
    net = caffe.NetSpec()
    net.data, net.label = caffe.layers.HDF5Data(ntop=2, source="in.rows", batch_size=2)
    run_if_small(caffe.Net(net.to_proto(), caffe.TRAIN))


@target()
def lmdb(data: bytes) -> None:
    """An LMDB's data.mdb, in the form of `fold`, and the images of its records."""
    shutil.rmtree("in.db", ignore_errors=True)
    os.mkdir("in.db")
    Path("in.db/data.mdb").write_bytes(unfold(data))
    DatumReader("in.db").read_all()


@target()
def image_list(data: bytes) -> None:
    """The list of an ImageData layer."""
    if may_be_read(data):
        run_source("ImageData", data, image_data_param={"batch_size": 2})


@target()
def window_file(data: bytes) -> None:
    """The windows of a WindowData layer."""
    if may_be_read(data):
        settings = {"batch_size": 4, "fg_threshold": 0.5, "bg_threshold": 0.5, "context_pad": 1}
        run_source("WindowData", data, window_data_param=settings, transform_param={"crop_size": 5, "mirror": True})


def may_be_read(data: bytes) -> bool:
    return b"/" not in data and b".." not in data


def run_source(kind: str, data: bytes, **settings: dict) -> None:
    """A net of one data layer that reads the input as its source."""
    (name,) = (name for name in settings if name.endswith("data_param"))
    settings[name]["source"] = written("in.list", data)
    net = caffe.NetSpec()
    net.data, net.label = getattr(caffe.layers, kind)(ntop=2, **settings)
    run_if_small(caffe.Net(net.to_proto(), caffe.TRAIN))


# A file that is mostly zeros


PIECE = struct.Struct("<IH")  # of a file: where it begins, and its length
MOST_BYTES = 1 << 20
PAGE = 4096


def fold(data: bytes) -> bytes:
    """A file as its pieces between zeros, each behind its PIECE."""
    pieces = [(found.start(), found[0]) for found in re.finditer(rb"[^\0]+(\0{1,7}[^\0]+)*", data)]
    return b"".join(PIECE.pack(at, len(piece)) + piece for at, piece in pieces)


def unfold(data: bytes) -> bytes:
    """The file of `fold`, up to a whole page."""
    out = bytearray()
    while len(data) >= PIECE.size:
        at, size = PIECE.unpack_from(data)
        at %= MOST_BYTES
        piece, data = data[PIECE.size : PIECE.size + size], data[PIECE.size + size :]
        out += bytes(max(at + len(piece) - len(out), 0))
        out[at : at + len(piece)] = piece
    return bytes(out + bytes(-len(out) % PAGE))


# Changes


NUMBERS = [0, 1, 2, 3, 5, 31, 255, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
NUMBERS += [-1, -2, -(2**31), -(2**63)]
FLOATS = [0.0, 0.5, 1.0, -1.0, 1e-30, 3e38, -3e38, float("inf"), float("-inf"), float("nan"), 2.0, 1e10]
RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def parts(message: Message) -> list[Message]:
    """A message and all that are in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                found += parts(part)
    return found


def words(message: Message) -> list[str]:
    """The strings in a message, which are the names that its layers are connected by."""
    return [
        value
        for part in parts(message)
        for field, values in part.ListFields()
        if field.type == field.TYPE_STRING
        for value in (values if field.is_repeated else [values])
        if isinstance(value, str)
    ]


def value_of(field: FieldDescriptor, names: list[str], rng: random.Random) -> object:
    """A value for a field: likely ones and absurd ones."""
    if field.type == field.TYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    if field.type == field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == field.TYPE_STRING:
        return rng.choice(
            rng.choice(
                [names or [""], names or [""], [*FILES, "missing", "\0", ""], sorted(caffe.LAYERS), sorted(FILLERS)]
            )
        )
    if field.type == field.TYPE_BYTES:
        return rng.randbytes(rng.choice([0, 1, 8, 60]))
    if field.cpp_type in RANGES:
        low, high = RANGES[field.cpp_type]
        number = rng.randint(-1, 6) if rng.random() < 0.5 else rng.choice(NUMBERS)
        return min(max(number, low), high)
    return rng.choice(FLOATS)


def change_message(message: Message, rng: random.Random) -> None:
    """One change: a field set, cleared, doubled or moved."""
    part = rng.choice(parts(message))
    present = [field for field, _ in part.ListFields()]
    every = list(part.DESCRIPTOR.fields)
    field = rng.choice(present if present and rng.random() < 0.8 else every)
    values = getattr(part, field.name)
    action = rng.random()
    if action < 0.15:
        part.ClearField(field.name)
    elif not field.is_repeated:
        if field.type == field.TYPE_MESSAGE:
            values.SetInParent()
        else:
            setattr(part, field.name, value_of(field, words(message), rng))
    elif field.type == field.TYPE_MESSAGE:
        if action < 0.3 and len(values):
            del values[rng.randrange(len(values))]
        elif len(values):
            copy = type(values[0])()
            copy.CopyFrom(rng.choice(values))
            values.insert(rng.randint(0, len(values)), copy)
        else:
            values.add()
    elif len(values) and action < 0.7:
        values[rng.randrange(len(values))] = value_of(field, words(message), rng)
    elif len(values) and action < 0.8:
        del values[rng.randrange(len(values))]
    else:
        values.insert(rng.randint(0, len(values)), value_of(field, words(message), rng))


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """One change: bits turned, numbers replaced, a part cut out, doubled, or inserted."""
    out = bytearray(data or b"\0")
    at = rng.randrange(len(out))
    action = rng.randrange(7)
    if action == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif action == 1:
        out[at] = rng.randrange(256)
    elif action == 2:
        size = rng.choice([1, 2, 4, 8])
        out[at : at + size] = (rng.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, rng.choice(["little", "big"]))
    elif action == 3:
        del out[at : at + rng.choice([1, 2, 4, 30, len(out)])]
    elif action == 4:
        other = rng.randrange(len(out))
        out[at:at] = out[other : other + rng.choice([1, 4, 30])]
    elif action == 5:
        out[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
    else:
        digits = [i for i, byte in enumerate(out) if 48 <= byte < 58]
        if digits:
            at = rng.choice(digits)
            out[at : at + 1] = str(rng.choice(NUMBERS)).encode()
    return bytes(out)


def changed(name: str, data: bytes, seed: int) -> bytes:
    """The input of a target with a few changes, the same for the same seed."""
    rng = random.Random(seed)
    kind = MESSAGES.get(name)
    is_text = name.endswith("_text")
    if kind is not None and rng.random() < 0.7:
        message = kind()
        try:
            if is_text:
                text_format.Parse(data.decode(errors="replace"), message)
            else:
                message.ParseFromString(data)
        except (text_format.ParseError, DecodeError, UnicodeError, RecursionError):
            pass
        else:
            for _ in range(rng.choice([1, 1, 2, 4])):
                change_message(message, rng)
            return text_format.MessageToString(message).encode() if is_text else message.SerializePartialToString()
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        data = change_bytes(data, rng)
    return data


def memory(what: str) -> int:
    """Of this process, in bytes: VmSize, what it has asked for; VmRSS, what it uses; VmHWM, the most that it used."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(what))


def within_limits(function: Target) -> Target:
    """The target with limits on the process's memory: what is beyond SPACE_GROWTH fails, MEMORY_GROWTH is an error."""
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + SPACE_GROWTH, resource.RLIM_INFINITY))

    def run(data: bytes) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before = memory("VmRSS")
        function(data)
        grown = memory("VmHWM") - before
        if grown > MEMORY_GROWTH:
            raise AssertionError(f"the process has grown by {grown} bytes")

    return run


def seeds(name: str) -> list[Path]:
    """The files of a target's corpus."""
    return sorted((Path(__file__).parent / "corpus" / name).iterdir())


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} TARGET [libFuzzer options] [CORPUS]\ntargets: {', '.join(TARGETS)}")
    name = sys.argv.pop(1)
    with workplace():
        pass
    for seed in seeds(name):
        TARGETS[name](seed.read_bytes())  # what is loaded but once is loaded

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 4:
            return changed(name, data, seed)[:most]
        return atheris.Mutate(data, most)

    atheris.Setup(sys.argv, within_limits(TARGETS[name]), custom_mutator=mutate)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(folder(), ignore_errors=True)


if __name__ == "__main__":
    main()
