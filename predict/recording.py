"""What is written while it is answered: a video's annotated copy, tables of faces, each all or nothing."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import cv2
import numpy as np

from preprocessing.stage import StageError, temporary

from .annotate import annotate
from .recognizer import FACE_COLUMNS, Prediction
from .video import VideoError, VideoFrame, opencv_path, quiet

CODEC = "mp4v"  # MPEG-4 part 2: the one for .mp4 that OpenCV's FFmpeg can write everywhere
LONGEST_SIDE = 8190  # which that codec can state, being even

Answer = TypeVar("Answer")  # what a recording takes one by one: a video's frames, or images
AnsweredImage = tuple[str, Sequence[Prediction]]  # its name and its faces


def cannot_write(target: Path, error: OSError) -> str:
    """What is said of a file that the system does not let us write."""
    return (
        f"{target}: cannot be written: {error.strerror or error}; "
        "expected a folder with room, in which files may be made"
    )


class Recording(Generic[Answer]):
    """A file that is written answer by answer, beside its target, and takes its place at the end.

    Raises StageError, here and by its methods, for what cannot be written.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        try:
            self.partial = temporary(target)
            self.partial.touch()  # tells why, where OpenCV would only say that it cannot
        except OSError as error:
            raise StageError(cannot_write(target, error)) from None

    def write(self, answer: Answer) -> None:
        """Take the next frame or image."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is not written yet."""
        raise NotImplementedError

    def finish(self) -> None:
        """Put the file in its place."""
        try:
            self.close()
            os.replace(self.partial, self.target)
        except OSError as error:
            raise StageError(cannot_write(self.target, error)) from None

    def discard(self) -> None:
        """Leave nothing behind; a file that was there before stays."""
        with suppress(OSError, StageError):
            self.close()
        with suppress(OSError):  # nothing more can be done about it, and why it failed has been said
            self.partial.unlink(missing_ok=True)


class AnnotatedVideo(Recording[VideoFrame]):
    """The frames with their faces marked, as MPEG-4 of the same rate and size (an odd side is one pixel longer).

    Parameters
    ----------
    target: an .mp4.
    size: width and height of the frames in pixels; a frame of another size, which a stream may have, is resized.
    fps: frames a second.
    paced: repeat and leave out frames so that they show at their seconds, for a camera that gives them as it can.
    """

    def __init__(self, target: Path, size: tuple[int, int], fps: float, paced: bool = False) -> None:
        super().__init__(target)
        # the codec counts time in 1/65535 s at the finest, and OpenCV takes a rate for so many thousandths
        self._fps = round(fps, 3 - (fps > 65.5) - (fps > 655))
        self._size, self._paced = size, paced
        self._written = 0
        self._last: np.ndarray | None = None
        self._writer = cv2.VideoWriter()
        width, height = (side + side % 2 for side in size)  # the codec has even sides, and OpenCV would cut
        try:
            path = opencv_path(self.partial)
        except VideoError as error:
            self.discard()
            raise StageError(str(error)) from None
        with quiet:
            self._writer.open(path, cv2.VideoWriter.fourcc(*CODEC), self._fps, (width, height))
        if not self._writer.isOpened():
            self.discard()
            raise StageError(
                f"{target}: OpenCV cannot write {width}×{height} at {self._fps:g} frames a second as {CODEC}; "
                f"expected sides of {LONGEST_SIDE} at most (--no-pictures answers without)"
            )

    def write(self, answer: VideoFrame) -> None:
        """Draw and append a frame; by `paced` as often as its time asks, perhaps never."""
        place = round(answer.seconds * self._fps) if self._paced else self._written
        if place < self._written:
            return
        image = annotate(answer.image, answer.predictions, same_size=True)
        width, height = self._size
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        if width % 2 or height % 2:
            image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        while self._written < place and self._last is not None:
            self._append(self._last)
        self._append(image)
        self._last = image if self._paced else None

    def _append(self, image: np.ndarray) -> None:
        self._writer.write(image)
        self._written += 1

    def close(self) -> None:
        """End the file, and look whether all of it is there: VideoWriter says nothing of a disk that is full."""
        if not self._writer.isOpened():
            return
        self._writer.release()
        with quiet:
            written = cv2.VideoCapture(opencv_path(self.partial), cv2.CAP_ANY)
            count = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
            written.release()
        if count != self._written:
            raise StageError(
                f"{self.target}: {count} of {self._written} frames could be written; expected a disk with room for all"
            )


class _Table(Recording[Answer]):
    """A CSV file, UTF-8, with these columns."""

    def __init__(self, target: Path, columns: Sequence[str]) -> None:
        super().__init__(target)
        # open for as long as there are answers; names of files that are not UTF-8 stay as they are
        self._file = open(self.partial, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(columns)

    def _append(self, *values: object) -> None:
        try:
            self._rows.writerow(values)
        except OSError as error:
            raise StageError(cannot_write(self.target, error)) from None

    def close(self) -> None:
        """Write the last rows."""
        self._file.close()


class FaceTable(_Table[VideoFrame]):
    """A CSV of the faces in the frames that were looked at: a row a face, box in pixels, probabilities 0..1.

    Parameters
    ----------
    target: a .csv.
    emotions: what the net tells apart, in the order of its outputs.
    """

    def __init__(self, target: Path, emotions: Sequence[str]) -> None:
        super().__init__(target, ["frame", "seconds", "track", *FACE_COLUMNS, *emotions])

    def write(self, answer: VideoFrame) -> None:
        """Append the frame's faces."""
        for face in answer.predictions if answer.looked_at else ():
            self._append(answer.number, round(answer.seconds, 3), face.track, *face.cells())


class ImageTable(_Table[AnsweredImage]):
    """As FaceTable, of images: the image's name first, and where no face was found a row of the name alone.

    Of no images there is no table, so that names with a slip do not take an old one's place.
    """

    def __init__(self, target: Path, emotions: Sequence[str]) -> None:
        super().__init__(target, ["file", *FACE_COLUMNS, *emotions])
        self._nothing: list[float | str | None] = [""] * (len(FACE_COLUMNS) + len(emotions))
        self._images = 0

    def write(self, answer: AnsweredImage) -> None:
        """Append the image's faces."""
        self._images += 1
        path, predictions = answer
        for row in [face.cells() for face in predictions] or [self._nothing]:
            self._append(path, *row)

    def finish(self) -> None:
        """Put the table in its place. Raises StageError where there was no image."""
        if not self._images:
            raise StageError(f"{self.target}: not written; expected an image that can be read (videos have their CSV)")
        super().finish()


class Recorder(Generic[Answer]):
    """Several recordings of the same: one that cannot be written is left out, and does not stop the others.

    A block with it ends with the files in their places, or where it raises with none of them.

    Attributes
    ----------
    written: the files that are in their places.
    problems: what could not be written, and why.
    """

    def __init__(self, makers: Sequence[Callable[[], Recording[Answer]]]) -> None:
        self.written: list[Path] = []
        self.problems: list[str] = []
        self._recordings: list[Recording[Answer]] = []
        for make in makers:
            try:
                self._recordings.append(make())
            except StageError as error:
                self.problems.append(str(error))

    def write(self, answer: Answer) -> None:
        """Give all of them the next frame or image."""
        for recording in list(self._recordings):
            try:
                recording.write(answer)
            except StageError as error:
                self._leave_out(recording, error)

    def _leave_out(self, recording: Recording[Answer], error: StageError) -> None:
        self.problems.append(str(error))
        self._recordings.remove(recording)
        recording.discard()

    def __enter__(self) -> Recorder[Answer]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for recording in list(self._recordings):
            if kind is not None:
                recording.discard()
                continue
            try:
                recording.finish()
                self.written.append(recording.target)
            except StageError as problem:
                self._leave_out(recording, problem)
