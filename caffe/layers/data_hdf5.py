"""HDF5Data and HDF5Output: arrays from HDF5 files, and into one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .. import glog as log
from .. import hdf5
from ..errors import CaffeError
from ..files import read_file
from .base import Layer, Shape, register
from .prefetch import PrefetchingLayer


@register("HDF5Data")
class HDF5Data(PrefetchingLayer[list[np.ndarray]]):
    """Batches of `batch_size` rows from the data sets of HDF5 files, from the first file again behind the last.

    `source` lists the files, one a line. Tops: of each data set that is named like a top the next rows,
    batch_size×…, as float32; all data sets of a file have as many rows. With `shuffle` the files come in another
    order each round, and the rows of each in another each time.
    """

    tops = (1, None)

    def setup(self, shapes: list[Shape]) -> None:
        p = self.param.hdf5_data_param
        if self.param.HasField("transform_param"):
            self.error("has a transform_param; HDF5Data does not transform")
        if p.batch_size < 1:
            self.error(f"batch_size is {p.batch_size}; expected at least 1")
        log.info("hdf5_data_layer.cpp:79", f"Loading list of HDF5 filenames from: {p.source}")
        try:
            self.files = os.fsdecode(read_file(p.source)).split()
        except CaffeError as error:
            self.error(str(error))
        log.info("hdf5_data_layer.cpp:93", f"Number of HDF5 files: {len(self.files)}")
        if not self.files:
            self.error(f"{p.source}: lists no file; expected one a line")
        try:
            found = [hdf5.look_at_rows(file, self.param.top) for file in self.files]
            self.rows = [rows for rows, _ in found]
            self.row_shapes = found[0][1]
            for file, (_, row_shapes) in zip(self.files, found, strict=True):
                for top, shape, first in zip(self.param.top, row_shapes, self.row_shapes, strict=True):
                    if shape != first:
                        raise CaffeError(
                            f"{file}: /{top} has rows of shape {shape}; those of {self.files[0]} have {first}"
                        )
        except CaffeError as error:
            self.error(f"{p.source}: {error}")

    def __len__(self) -> int:
        """Number of rows of all files."""
        return sum(self.rows)

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        return [(self.param.hdf5_data_param.batch_size, *shape) for shape in self.row_shapes]

    def batches(self, position: int) -> Iterator[list[np.ndarray]]:
        batch = self.param.hdf5_data_param.batch_size
        parts: list[list[np.ndarray]] = []
        missing = batch
        for arrays in self._files(position):
            start = 0
            while start < len(arrays[0]):
                parts.append([array[start : start + missing] for array in arrays])
                start += len(parts[-1][0])
                missing -= len(parts[-1][0])
                if not missing:
                    yield [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
                    parts, missing = [], batch

    def _files(self, position: int) -> Iterator[list[np.ndarray]]:
        """The rows of file after file, from `position` on, without end."""
        shuffle = self.param.hdf5_data_param.shuffle
        loaded: list[np.ndarray] = []
        while True:
            round_number, skip = divmod(position, len(self))
            order = np.arange(len(self.files))
            if shuffle:
                order = np.random.RandomState([self.seed, round_number % 2**32]).permutation(order)
            for number in order.tolist():
                count = self.rows[number]
                if skip >= count:
                    skip -= count
                    continue
                if not loaded or len(self.files) > 1:  # a single file is read once
                    loaded = hdf5.read_rows(self.files[number], self.param.top)
                    if [array.shape for array in loaded] != [(count, *shape) for shape in self.row_shapes]:
                        raise CaffeError(f"{self.files[number]}: has changed since the net was made")
                arrays = loaded
                if shuffle:
                    rows = np.random.RandomState([self.seed, round_number % 2**32, number]).permutation(count)
                    arrays = [array[rows] for array in loaded]
                yield [array[skip:] for array in arrays]
                position += count - skip
                skip = 0

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        arrays = self.next_batch()
        self.position += self.param.hdf5_data_param.batch_size
        return [torch.from_numpy(array).to(self.device) for array in arrays]


@register("HDF5Output")
class HDF5Output(Layer):
    """Writes its bottoms into the data sets `data` and `label` of `file_name`, num×channels×height×width, no top.

    The file is made anew with the net. Each forward pass adds its rows; Caffe stops at the second.
    """

    bottoms = (2, 2)
    tops = (0, 0)
    differentiable = False
    recordable = False

    def setup(self, shapes: list[Shape]) -> None:
        self.path = self.param.hdf5_output_param.file_name
        if not self.path:
            self.error("file_name is not given in hdf5_output_param")
        self._legacy_shapes(shapes)
        try:
            hdf5.clear_rows(self.path)
        except CaffeError as error:
            self.error(str(error))

    def top_shapes(self, shapes: list[Shape]) -> list[Shape]:
        self._legacy_shapes(shapes)
        return []

    def _legacy_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """The bottoms' shapes with four axes, the last ones 1."""
        for name, shape in zip(self.param.bottom, shapes, strict=True):
            if len(shape) > 4:
                self.error(f"bottom {name!r} has shape {shape}; expected at most 4 axes")
        four_axes = [tuple(shape) + (1,) * (4 - len(shape)) for shape in shapes]
        if four_axes[0][0] != four_axes[1][0]:
            self.error(f"the bottoms have {four_axes[0][0]} and {four_axes[1][0]} rows; expected as many")
        return four_axes

    def forward(self, bottoms: list[torch.Tensor]) -> list[torch.Tensor]:
        shapes = self._legacy_shapes([tuple(bottom.shape) for bottom in bottoms])
        arrays = [bottom.detach().float().cpu().numpy() for bottom in bottoms]
        log.info("hdf5_output_layer.cpp:31", f"Saving HDF5 file {self.path}")
        try:
            hdf5.append_rows(
                self.path,
                {name: a.reshape(shape) for name, a, shape in zip(("data", "label"), arrays, shapes, strict=True)},
            )
        except CaffeError as error:
            self.error(str(error))
        return []
