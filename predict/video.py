"""Videos, cameras and streams: their frames, the seconds at which these show, and the faces in them."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from caffe.files import StrPath
from preprocessing.images import MAX_PIXELS, ImageError, opencv_silent

from .recognizer import Prediction, Recognizer
from .tracking import Tracker

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg")  # what is taken for a video
EXPECTED = "a video that OpenCV's FFmpeg reads, such as MP4, WebM, AVI or MOV"
CHUNK_FRAMES, CHUNK_PIXELS = 64, 16 << 20  # frames that are held at a time
RATES = (0.1, 1000.0)  # frames a second; a container that states another knows none
USUAL_RATE = 25.0  # ... and then this is taken
MOST_CAMERAS = 1 << 31  # numbers that OpenCV takes
LONGEST_GAP = 60.0  # seconds between two frames of a stream; beyond, its clock has jumped
FFMPEG_LOG, FFMPEG_QUIET = "OPENCV_FFMPEG_LOGLEVEL", "-8"  # OpenCV reads it when it first opens a video


class VideoError(ImageError):
    """A video or camera that cannot be used: says which, why, and what was expected."""


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video, and the faces in it.

    Attributes
    ----------
    number: counted from 0.
    seconds: from the first frame, by the video's own clock; of a camera by this machine's.
    image: uint8, H×W×3 (BGR), or H×W of a camera that gives grey ones; turned as the video's metadata says.
    predictions: its faces, the most confident first; `track` says which face of other frames each is.
    looked_at: False where the predictions are those of a frame before, since only every Nth one is looked at.
    """

    number: int
    seconds: float
    image: np.ndarray
    predictions: list[Prediction]
    looked_at: bool


def is_video(path: StrPath) -> bool:
    """Whether a file's name says that it is a video; what it holds is seen when it is opened."""
    return os.fspath(path).lower().endswith(SUFFIXES)


class Video:
    """A video file, a camera or a stream, opened; a loop over it, once, gives number, seconds and image of each frame.

    Parameters
    ----------
    source: a file; the number of a camera, or its device (`/dev/video0`); or an address that FFmpeg knows (`rtsp://…`).

    Attributes
    ----------
    name: what messages call it.
    live: whether it is a camera or a stream, which are worked on one frame at a time.
    width, height: in pixels, of the first frame.
    fps: frames a second as the source states them; USUAL_RATE where that is no such number.
    frame_count: as the file states it, which may be an estimate; None where it does not, and for what is live.

    Raises VideoError where there is no such source, it is none of these, or gives no frame; also for frames of more
    than MAX_PIXELS pixels.
    """

    def __init__(self, source: StrPath | int) -> None:
        _check_source(source)
        self._source = source
        self.name = f"camera {source}" if isinstance(source, int) else os.fspath(source)
        self.live = isinstance(source, int) or is_address(self.name) or Path(self.name).is_char_device()
        if not self.live:
            _check_file(Path(self.name))
        with quiet:
            self._capture = self._open()
        try:
            if not self._capture.isOpened():
                raise VideoError(f"{self.name}: {self._cannot()}")
            width, height, fps, count = (
                self._capture.get(what)
                for what in (
                    cv2.CAP_PROP_FRAME_WIDTH,
                    cv2.CAP_PROP_FRAME_HEIGHT,
                    cv2.CAP_PROP_FPS,
                    cv2.CAP_PROP_FRAME_COUNT,
                )
            )
            if width * height > MAX_PIXELS:
                raise VideoError(
                    f"{self.name}: frames of {width:.0f}×{height:.0f}; "
                    f"expected {MAX_PIXELS / 1e6:.0f} megapixels at most"
                )
            self._first = self._read()
            if self._first is None:
                raise VideoError(f"{self.name}: gives no frame; expected one at least")
        except VideoError:
            self.close()
            raise
        self.height, self.width = self._first.shape[:2]
        self.fps = fps if RATES[0] <= fps <= RATES[1] else USUAL_RATE
        self.frame_count = int(count) if not self.live and 1 <= count < 1e9 else None
        self._frames = 0  # that were read

    def _open(self) -> cv2.VideoCapture:
        if self.live:
            return cv2.VideoCapture(self._source if isinstance(self._source, int) else self.name)
        # FFmpeg alone: the others take a name such as img_01.mp4 for one of many images, or speak to the terminal
        known = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
        return cv2.VideoCapture(opencv_path(Path(self.name)), cv2.CAP_FFMPEG if known else cv2.CAP_ANY)

    def _cannot(self) -> str:
        if not self.live:
            return f"not a video, cut off, or of a codec that is not there; expected {EXPECTED}"
        if is_address(self.name):
            return "cannot be opened; expected the address of a stream that answers"
        return "cannot be opened; expected a camera that is there and that nothing else uses (0 is the first)"

    def _read(self) -> np.ndarray | None:
        """The next frame; None behind the last one."""
        with opencv_silent:
            there, image = self._capture.read()
        if not there or image is None or not image.size:
            return None
        if image.dtype != np.uint8:
            raise VideoError(f"{self.name}: frames of {image.dtype}; expected 8 bits a channel")
        return image

    def __iter__(self) -> Iterator[tuple[int, float, np.ndarray]]:
        image, clock = self._first, _Clock(self)
        self._first = None  # frees it, and tells a second loop that there is nothing more
        while image is not None:
            yield self._frames, clock.seconds(), image
            self._frames += 1
            image = self._read()

    def check_end(self) -> None:
        """To be called behind the last frame. Raises VideoError where there should have been more of them.

        Many containers state no count, and OpenCV gives duration times rate instead: so a few may be missing.
        """
        if self.frame_count and self._frames + max(2, self.frame_count // 20) < self.frame_count:
            raise VideoError(
                f"{self.name}: cut off or damaged: its frames end after {self._frames:,}; expected {self.frame_count:,}"
            )
        if self.live and not is_address(self.name):
            raise VideoError(f"{self.name}: stopped after {self._frames:,} frames; expected more of them until Ctrl-C")

    def milliseconds(self) -> float:
        """The timestamp of the last frame that was read, as OpenCV gives it."""
        return self._capture.get(cv2.CAP_PROP_POS_MSEC)

    def close(self) -> None:
        """Give the file or the camera back."""
        self._capture.release()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Clock:
    """The seconds at which frames show, the first at 0: timestamps where they go forward, else one frame's time more.

    A camera's are those of this machine, since its driver may count from anywhere.
    """

    def __init__(self, video: Video) -> None:
        self._own = video.live and not is_address(video.name)
        self._video, self._step = video, 1 / video.fps
        self._furthest = LONGEST_GAP if video.live else math.inf
        self._start = self._now()
        self._last: float | None = None

    def _now(self) -> float:
        return time.monotonic() if self._own else self._video.milliseconds() / 1000

    def seconds(self) -> float:
        """Of the frame that was read last."""
        if self._last is None:
            self._last = 0.0
        else:
            ahead = self._now() - self._start - self._last
            self._last += ahead if 0 < ahead < self._furthest else self._step
        return self._last


def recognize(recognizer: Recognizer, video: Video, every: int = 1) -> Iterator[VideoFrame]:
    """As `Recognizer.predict_video`, of an opened video, which is closed at the end."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every is {every!r}; expected a whole number, 1 or more")
    return _recognize(recognizer, video, every)


def _recognize(recognizer: Recognizer, video: Video, every: int) -> Iterator[VideoFrame]:
    with video:
        predictions: list[Prediction] = []
        tracker = Tracker()
        for chunk in _chunks(video):
            answers = iter(recognizer.predict_batch([image for number, _, image in chunk if number % every == 0]))
            for number, seconds, image in chunk:
                looked_at = number % every == 0
                predictions = tracker.number(next(answers), seconds) if looked_at else predictions
                yield VideoFrame(number, seconds, image, predictions, looked_at)
        video.check_end()


def _chunks(video: Video) -> Iterator[list[tuple[int, float, np.ndarray]]]:
    """Some frames at a time, since a batch is quicker; of what is live one, which is answered at once."""
    most = 1 if video.live else max(1, min(CHUNK_FRAMES, CHUNK_PIXELS // (video.width * video.height)))
    chunk = []
    for frame in video:
        chunk.append(frame)
        if len(chunk) == most:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def is_address(name: str) -> bool:
    """Whether a name is an address such as `rtsp://…`, and no file's."""
    return "://" in name


def camera_source(text: str) -> int | str:
    """The camera that a text means: a number, a device such as `/dev/video0`, or an address. Raises VideoError else."""
    if text.isdecimal() and int(text) < MOST_CAMERAS:
        return int(text)
    if is_address(text) or Path(text).is_char_device():
        return text
    raise VideoError(
        f"camera {text!r}: expected the number of a camera (0 is the first), its device, or an address such as rtsp://…"
    )


def opencv_path(path: Path) -> str:
    """A file's name as OpenCV and FFmpeg take it: absolute, so that nothing in it is taken for a protocol.

    Raises VideoError for a name that is not UTF-8, which OpenCV cannot be given.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise VideoError(f"{path}: the name is not UTF-8; expected one that is, for a video") from None
    return os.path.abspath(path)


class _Quiet:
    """OpenCV and its FFmpeg do not write to the terminal: what they complain about becomes one message of ours.

    FFmpeg's part stands in the environment while a thread is in here, and is decided for the whole process by whatever
    first opens a video in it. The last thread out leaves the environment as it was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._level: str | None = None

    def __enter__(self) -> None:
        opencv_silent.__enter__()
        with self._lock:
            if not self._inside:
                self._level = os.environ.get(FFMPEG_LOG)
                os.environ[FFMPEG_LOG] = FFMPEG_QUIET
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._level is None:
                os.environ.pop(FFMPEG_LOG, None)
            elif not self._inside and self._level is not None:
                os.environ[FFMPEG_LOG] = self._level
        opencv_silent.__exit__(*error)


quiet = _Quiet()  # for what opens a video


def _check_source(source: StrPath | int) -> None:
    """Raise VideoError for what can be no source: of a camera -1, OpenCV ends the whole process."""
    number = isinstance(source, int) and not isinstance(source, bool) and 0 <= source < MOST_CAMERAS
    if not number and not isinstance(source, (str, os.PathLike)):
        raise VideoError(
            f"source is {source!r}; expected a video file, the number of a camera (0 is the first), its device, or an "
            "address such as rtsp://…"
        )


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise VideoError(f"{path}: a folder; expected a video")
        if not path.is_file():
            raise VideoError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}; expected a video")
        with open(path, "rb") as file:  # tells why, where OpenCV would only say that it cannot
            if not file.read(1):
                raise VideoError(f"{path}: the file is empty; expected a video")
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}; expected a video that can be read") from None
