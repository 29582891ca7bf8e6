"""How answers are told: tables and lines for people, or JSON for programs, and errors as they come."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .recognizer import Prediction
from .video import Video, VideoFrame


def table(predictions: Sequence[Prediction]) -> str:
    """A line a face: its box, how sure it is a face, its emotion, and the probability of each emotion in percent."""
    names = list(predictions[0].probabilities)
    widths = [max(len(name), 5) for name in names]
    heads = " ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    emotions = max(len("emotion"), *(len(name) for name in names))
    lines = [f"   #  {'box (x y w h)':<19}  {'face':>4}  {'emotion':<{emotions}}  {heads}"]
    for number, face in enumerate(predictions, 1):
        sure = "-" if face.confidence is None else f"{100 * face.confidence:.0f}%"
        values = zip(face.probabilities.values(), widths, strict=True)
        shares = " ".join(f"{100 * value:>{width - 1}.1f}%" for value, width in values)
        lines.append(f"  {number:>2}  {box(face):<19}  {sure:>4}  {face.emotion:<{emotions}}  {shares}")
    return "\n".join(lines)


def box(face: Prediction) -> str:
    """x, y, width and height in whole pixels."""
    return " ".join(f"{value:.0f}" for value in face.box)


def counted(number: int, noun: str) -> str:
    """`1 face`, `2 faces`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def describe(path: str, image: np.ndarray, predictions: Sequence[Prediction]) -> str:
    """What is printed for people about one image."""
    count = counted(len(predictions), "face") if predictions else "no face found"
    head = f"{path} ({image.shape[1]}×{image.shape[0]}): {count}"
    return f"{head}\n{table(predictions)}" if predictions else head


def describe_frame(frame: VideoFrame) -> str:
    """What is printed for people while a camera runs: a line a face."""
    head = f"{frame.seconds:8.2f} s  "
    lines = [
        f"{head}#{face.track:<3} {box(face):<19}  {face.emotion:<8}  {100 * face.probabilities[face.emotion]:5.1f}%"
        for face in frame.predictions
    ]
    return "\n".join(lines or [f"{head}no face found"])


class Tally:
    """What is counted in a video: frames, faces, and the emotion of each frame's most confident face."""

    def __init__(self) -> None:
        self.frames = self.looked_at = self.faces = 0
        self.seconds = 0.0  # at which the last frame shows
        self.emotions: Counter[str] = Counter()

    def add(self, frame: VideoFrame) -> None:
        """Count a frame."""
        self.frames, self.seconds = self.frames + 1, frame.seconds
        if frame.looked_at:
            self.looked_at += 1
            self.faces += len(frame.predictions)
            self.emotions[frame.predictions[0].emotion if frame.predictions else "no face"] += 1

    def describe(self, source: Video) -> str:
        """The line for people: shares are of the frames that were looked at."""
        looked_at = f" ({self.looked_at:,} looked at)" if self.looked_at < self.frames else ""
        seconds = self.seconds + (0 if source.live else 1 / source.fps)  # the last frame shows for a while, too
        shares = ", ".join(f"{name} {100 * n / self.looked_at:.0f}%" for name, n in self.emotions.most_common())
        head = f"{source.name} ({source.width}×{source.height}): {counted(self.frames, 'frame')}{looked_at}"
        return f"{head}, {seconds:.1f} s, {counted(self.faces, 'face')}" + (f"; {shares}" if shares else "")


class Answers:
    """All that is answered, told to people at once, or to programs as one JSON list at the end; errors as they come."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.results: list[dict[str, Any]] = []
        self.inputs: Counter[str] = Counter()  # that were answered, by kind
        self.faces = 0
        self.code = 0
        self._start = time.perf_counter()

    def add(self, kind: str, faces: int, result: dict[str, Any], text: str, problems: Sequence[str] = ()) -> None:
        """An `image` or `video` and its answer, which stands even where there were problems."""
        self.inputs[kind] += 1
        self.faces += faces
        if problems:
            result = {**result, "error": "; ".join(problems)}
        self.results.append(result)
        self.say(text)
        for problem in problems:
            self.complain(problem)

    def add_error(self, path: str, problem: str) -> None:
        """An input without an answer."""
        self.results.append({"file": path, "error": problem})
        self.complain(problem)

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.as_json:
            print(text, flush=True)

    def complain(self, problem: str) -> None:
        """An error, of which the exit code tells too."""
        self.code = 1
        print(f"error: {problem}", file=sys.stderr)

    def finish(self, tables: Sequence[Path] = ()) -> int:
        """The JSON, or the summary line, which names the images' tables. Returns the exit code."""
        if self.as_json:
            print(json.dumps(self.results, indent=1))
        elif self.inputs:
            inputs = ", ".join(counted(number, kind) for kind, number in sorted(self.inputs.items()))
            seconds = time.perf_counter() - self._start
            files = [Path(result["annotated"]) for result in self.results if result.get("annotated")]
            annotated = f"; annotated in {files[0].parent}" if files else ""
            table = "".join(f"; table in {file}" for file in tables)
            print(f"predict: {inputs}, {counted(self.faces, 'face')}{annotated}{table} ({seconds:.1f} s)")
        return self.code
