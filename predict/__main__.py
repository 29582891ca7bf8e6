"""Say which emotion each face in some images or videos, or before a camera, shows, and draw it on them.

python -m predict photo.jpg clip.mp4 [more, folders, 'patterns/*.png'] [--face one] [--json] [--output DIR]
python -m predict --camera 0 [--seconds 60]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np

from preprocessing.images import ImageError, find_images, read_image
from preprocessing.network_input import VIEWS
from preprocessing.stage import StageError, progress, replace_file, run_main

from . import video
from .annotate import annotate
from .answers import Answers, Tally, describe, describe_frame
from .options import add_model_arguments, check_model_arguments, make_recognizer, print_any_name
from .recognizer import Recognizer
from .recording import AnnotatedVideo, AnsweredImage, FaceTable, ImageTable, Recorder, cannot_write
from .video import Video, VideoError, VideoFrame, camera_source, is_video

OUTPUT = Path("data/predictions")
MakeRecognizer = Callable[[], Recognizer]  # loaded when there is something to look at, and once
CHUNK_IMAGES, CHUNK_PIXELS = 64, 16 << 20  # images that are held at a time


def find_inputs(arguments: Iterable[str]) -> list[tuple[str, str | None]]:
    """As `find_images`, but of a folder also the videos, in one order with its images."""
    found: dict[str, str | None] = {}
    for argument in arguments:
        inputs = find_images([argument])
        if os.path.isdir(argument):
            videos = [entry.path for entry in os.scandir(argument) if entry.is_file() and is_video(entry.name)]
            inside = sorted([*videos, *(path for path, problem in inputs if problem is None)])
            problem = f"{argument}: no images or videos in this folder"
            inputs = [(path, None) for path in inside] or [(argument, problem)]
        found.update(inputs)
    return list(found.items())


def read_chunks(found: Sequence[tuple[str, str | None]]) -> Iterator[list[tuple[str, np.ndarray | str]]]:
    """The images in the order of their names, some at a time; what cannot be read comes as its error's text."""
    chunk: list[tuple[str, np.ndarray | str]] = []
    pixels = 0
    for path, problem in found:
        image: np.ndarray | str
        try:
            image = problem or read_image(path)
        except ImageError as error:
            image = str(error)
        if isinstance(image, np.ndarray):
            size = image.shape[0] * image.shape[1]
            if chunk and (len(chunk) == CHUNK_IMAGES or pixels + size > CHUNK_PIXELS):
                yield chunk
                chunk, pixels = [], 0
            pixels += size
        chunk.append((path, image))
    if chunk:
        yield chunk


def output_files(
    paths: Sequence[str], folder: Path, pictures: bool = True, table: Path | None = None
) -> dict[str, Path]:
    """Where each input's annotated copy goes: the same name, as .jpg, .png or .mp4, with a number where two are alike.

    Beside a video's stands its table, the same name as .csv; without `pictures` that alone is written. Raises
    StageError where what is written would replace one of the inputs themselves, or `table` be a video's.
    """
    files: dict[str, Path] = {}
    used: set[Path] = set()
    for path in paths:
        name = Path(path)
        suffix = name.suffix if name.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
        suffix = ".mp4" if is_video(path) else suffix
        file, number = folder / f"{name.stem}{suffix}", 2
        while file in used:
            file, number = folder / f"{name.stem}-{number}{suffix}", number + 1
        used.add(file)
        files[path] = file
    written = list(files.values()) if pictures else []
    of_videos = [file.with_suffix(".csv") for path, file in files.items() if is_video(path)]
    if table is not None and table.resolve() in [file.resolve() for file in of_videos]:
        raise StageError(f"{table}: is a video's table; expected another --table")
    written += of_videos
    originals = {Path(path).resolve() for path in paths if Path(path).exists()}
    for file in written:
        if file.resolve() in originals:
            raise StageError(f"{file}: would be replaced by its annotated copy; expected another --output folder")
    return files


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image as its name says, all or nothing. Raises StageError where it cannot be written."""
    written, data = cv2.imencode(path.suffix.lower(), image)
    if not written:
        raise StageError(f"{path}: OpenCV cannot encode {image.shape[1]}×{image.shape[0]} pixels so")
    try:
        with replace_file(path) as partial:
            partial.write_bytes(data.tobytes())
    except OSError as error:
        raise StageError(cannot_write(path, error)) from None


def answer_images(
    found: Sequence[tuple[str, str | None]],
    files: dict[str, Path],
    recognizer: MakeRecognizer,
    pictures: bool,
    answers: Answers,
    table: Recorder[AnsweredImage],
) -> None:
    """Recognise in images, some at a time, and write their annotated copies, and their faces into the table."""
    for chunk in read_chunks(found):
        images = [image for _, image in chunk if isinstance(image, np.ndarray)]
        predicted = iter(recognizer().predict_batch(images) if images else [])
        for path, image in chunk:
            if isinstance(image, str):
                answers.add_error(path, image)
                continue
            predictions = next(predicted)
            table.write((path, predictions))
            problems = []
            if pictures:
                try:
                    write_image(files[path], annotate(image, predictions))
                except StageError as error:
                    problems.append(str(error))
            result = {"file": path, "width": image.shape[1], "height": image.shape[0]}
            result["annotated"] = str(files[path]) if pictures and not problems else None
            result["faces"] = [face.to_dict() for face in predictions]
            answers.add("image", len(predictions), result, describe(path, image, predictions), problems)


def answer_video(
    source: Video,
    target: Path,
    recognizer: Recognizer,
    args: argparse.Namespace,
    answers: Answers,
    stopped: Callable[[VideoFrame], bool] = lambda _: False,
) -> None:
    """Recognise in a video or before a camera, until `stopped` says so of a frame; write annotated copy and table."""
    frames = video.recognize(recognizer, source, args.every)
    if not source.live:
        frames = iter(progress(frames, source.frame_count, Path(source.name).name, "frame"))
    tally, looked_at = Tally(), []
    size, csv = (source.width, source.height), target.with_suffix(".csv")
    makers: list[Callable[[], Any]] = [functools.partial(FaceTable, csv, recognizer.emotions)]
    if args.pictures:
        makers.append(functools.partial(AnnotatedVideo, target, size, source.fps, source.live))
    problems = []
    with Recorder(makers) as recorder:
        try:
            for frame in frames:
                recorder.write(frame)
                tally.add(frame)
                if frame.looked_at and args.json:
                    faces = [face.to_dict() for face in frame.predictions]
                    looked_at.append({"frame": frame.number, "seconds": round(frame.seconds, 3), "faces": faces})
                if frame.looked_at and source.live:
                    answers.say(describe_frame(frame))
                if stopped(frame):
                    break
        except VideoError as error:  # it ended too early: what there was of it is answered
            problems.append(str(error))
    result = {"file": source.name, "width": source.width, "height": source.height, "fps": round(source.fps, 3)}
    result["frame_count"] = tally.frames
    result["annotated"] = str(target) if target in recorder.written else None
    result["csv"] = str(csv) if csv in recorder.written else None
    result["frames"] = looked_at
    text = tally.describe(source)
    if source.live and recorder.written:  # under a name that nobody has given
        text += "\nwritten: " + ", ".join(str(file) for file in recorder.written)
    answers.add("video", tally.faces, result, text, [*problems, *recorder.problems])


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed, which then ends nothing by itself; pressed again it does."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def answer_videos(
    paths: Iterable[str],
    files: dict[str, Path],
    recognizer: MakeRecognizer,
    args: argparse.Namespace,
    answers: Answers,
) -> None:
    """Recognise in one video after the other."""
    for path in paths:
        try:
            source = Video(path)
        except VideoError as error:
            answers.add_error(path, str(error))
            continue
        with source:
            answer_video(source, files[path], recognizer(), args, answers)


def run_inputs(args: argparse.Namespace) -> int:
    """Recognise in all images and videos; returns the exit code."""
    found = find_inputs(args.inputs)
    files = output_files([path for path, problem in found if problem is None], args.output, args.pictures, args.table)
    recognizer = functools.cache(lambda: make_recognizer(args, args.views))
    answers = Answers(args.json)
    tables = [] if args.table is None else [lambda: ImageTable(args.table, recognizer().emotions)]
    with Recorder(tables) as table:
        for videos, group in itertools.groupby(found, lambda entry: entry[1] is None and is_video(entry[0])):
            if videos:
                answer_videos([path for path, _ in group], files, recognizer, args, answers)
            else:
                answer_images(list(group), files, recognizer, args.pictures, answers, table)
    for problem in table.problems:
        answers.complain(problem)
    return answers.finish(table.written)


def run_camera(args: argparse.Namespace) -> int:
    """Recognise before a camera until Ctrl-C or for some seconds; returns the exit code."""
    answers = Answers(args.json)
    target = args.output / time.strftime("camera-%Y%m%d-%H%M%S.mp4")  # what was filmed before is kept
    try:
        source = Video(camera_source(args.camera))
    except VideoError as error:
        answers.add_error(args.camera, str(error))
        return answers.finish()
    with source:
        recognizer = make_recognizer(args, args.views)
        with interrupts() as pressed:
            until = args.seconds or float("inf")
            answer_video(source, target, recognizer, args, answers, lambda frame: pressed() or frame.seconds >= until)
    return answers.finish()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m predict", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("inputs", nargs="*", metavar="FILE", help="images, videos, folders of them, or quoted patterns")
    parser.add_argument(
        "--camera",
        metavar="N",
        help="until Ctrl-C, instead of files: the number of a camera (0 is the first), its device, or an address "
        "(rtsp://…)",
    )
    parser.add_argument("--seconds", type=positive, metavar="S", help="with --camera: stop after S seconds")
    parser.add_argument(
        "--every", type=whole, default=1, metavar="N", help="of videos, look at every Nth frame only (default: 1)"
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--views",
        choices=tuple(VIEWS),
        help="average over views of each face: centre 1, mirror 2, ten_crop 10 (default: mirror; centre for a net that "
        "sees each face aligned and as it is)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs, and nothing else")
    parser.add_argument(
        "--no-pictures", dest="pictures", action="store_false", help="write no annotated copies (videos have their CSV)"
    )
    parser.add_argument(
        "--table", type=csv_file, metavar="FILE.csv", help="write a CSV of the faces in all images, a row a face"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        help="folder for annotated copies, and a CSV a video (default: %(default)s)",
    )
    args = parser.parse_args()
    check_model_arguments(parser, args)
    check_inputs(parser, args)
    print_any_name()
    return run_inputs(args) if args.camera is None else run_camera(args)


def check_inputs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the usage unless there are files, or a camera."""
    if bool(args.inputs) == (args.camera is not None):
        parser.error("expected files, or --camera, and not both")
    if args.seconds is not None and args.camera is None:
        parser.error(f"--seconds is {args.seconds:g}, but there is no --camera; expected both")
    if args.table is not None and args.camera is not None:
        parser.error("--table is of images; a camera has a CSV of its own in --output")


def whole(text: str) -> int:
    """A whole number, 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, 1 or more")
    return int(text)


def csv_file(text: str) -> Path:
    """A file's name that ends in .csv, for argparse: it is replaced, and an image's would be by mistake."""
    if not text.lower().endswith(".csv"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a name that ends in .csv")
    if os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; expected a file's name")
    return Path(text)


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number of seconds above 0")
    return value


if __name__ == "__main__":
    run_main(main)
