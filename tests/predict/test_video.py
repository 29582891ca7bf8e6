"""Videos and cameras: what is answered and written of them, whole, cut off, interrupted, and where nothing can be."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_model import band_face, make_model

from predict import Recognizer, VideoError
from predict.__main__ import main
from predict.annotate import COLORS
from predict.recording import AnnotatedVideo
from predict.video import USUAL_RATE, Video, VideoFrame
from preprocessing.datasets import EMOTIONS
from preprocessing.stage import StageError

ASTRONAUT = Path(__file__).parents[2] / "images" / "astronaut.png"
HAPPY, ANGRY = EMOTIONS.index("happy"), EMOTIONS.index("angry")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cropped(files: tuple[Path, Path, Path]) -> Recognizer:
    return Recognizer(*files, face="none", device="cpu", views="centre")


@pytest.fixture
def predict(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command on cropped faces: exit code, standard output, and the errors.

    FFmpeg speaks up in this process, where tests open videos before the command does: its lines are left out.
    """
    deploy, weights, mean = map(str, files)
    model = ["--deploy", deploy, "--weights", weights, "--mean", mean, "--device", "cpu", "--views", "centre"]

    def call(*arguments: object, output: Path = tmp_path / "out", face: str = "none") -> tuple[int, str, str]:
        options = [*model, "--face", face, "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), *options])
        code = main()
        out, err = capfd.readouterr()
        return code, out, "".join(line for line in err.splitlines(True) if not line.startswith("["))

    return call


def band_frame(k: int, scale: int = 2) -> np.ndarray:
    """A colour frame of 48·scale pixels a side that the tiny net takes for class k."""
    return cv2.cvtColor(np.kron(band_face(k), np.ones((scale, scale), np.uint8)), cv2.COLOR_GRAY2BGR)


def write_video(path: Path, frames: list[np.ndarray], fps: float = 10.0, codec: str = "mp4v") -> Path:
    height, width = frames[0].shape[:2]
    colour = frames[0].ndim == 3
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (width, height), colour)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (answer := capture.read())[0]:
        frames.append(answer[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def drawn_emotion(frame: np.ndarray) -> str:
    """Of a frame whose face is all of it: the emotion that the colour of the box's left edge stands for."""
    edge = np.median(frame[30:-5, 0].astype(float), axis=0)
    return EMOTIONS[int(np.abs(np.array(COLORS[: len(EMOTIONS)]) - edge).sum(1).argmin())]


def two_emotions(path: Path) -> Path:
    """Ten frames at 10 a second: six happy, four angry."""
    return write_video(path, [band_frame(HAPPY)] * 6 + [band_frame(ANGRY)] * 4)


# Files


def test_a_video_becomes_an_annotated_copy_a_table_and_a_line(predict: Any, tmp_path: Path) -> None:
    clip = two_emotions(tmp_path / "clip.mp4")
    code, out, err = predict(clip)
    assert (code, err) == (0, "")
    line, summary = out.splitlines()
    assert line == f"{clip} (96×96): 10 frames, 1.0 s, 10 faces; happy 60%, angry 40%"
    assert summary.startswith(f"predict: 1 video, 10 faces; annotated in {tmp_path}/out (")
    assert sorted(os.listdir(tmp_path / "out")) == ["clip.csv", "clip.mp4"]
    frames, fps = read_video(tmp_path / "out" / "clip.mp4")
    assert (len(frames), frames[0].shape, fps) == (10, (96, 96, 3), 10)
    assert [drawn_emotion(frame) for frame in frames] == ["happy"] * 6 + ["angry"] * 4
    rows = read_table(tmp_path / "out" / "clip.csv")
    columns = ["frame", "seconds", "track", "x", "y", "width", "height", "confidence", "emotion", *EMOTIONS]
    assert list(rows[0]) == columns
    assert {row["track"] for row in rows} == {"1"}
    assert [int(row["frame"]) for row in rows] == list(range(10))
    assert [float(row["seconds"]) for row in rows] == pytest.approx([i / 10 for i in range(10)])
    assert [row["emotion"] for row in rows] == ["happy"] * 6 + ["angry"] * 4
    assert [float(rows[0][name]) for name in ("x", "y", "width", "height")] == [0, 0, 96, 96]
    assert rows[0]["confidence"] == ""  # nothing was detected
    assert sum(float(rows[0][name]) for name in EMOTIONS) == pytest.approx(1, abs=1e-5)


def test_every_nth_frame_is_looked_at_and_its_answer_stays(predict: Any, tmp_path: Path) -> None:
    happy, angry = band_frame(HAPPY), band_frame(ANGRY)
    clip = write_video(tmp_path / "clip.mp4", [happy, angry, angry, angry, happy, happy, happy])
    code, out, _ = predict(clip, "--every", 3, "--json")
    (entry,) = json.loads(out)
    assert code == 0
    assert (entry["file"], entry["width"], entry["height"], entry["fps"]) == (str(clip), 96, 96, 10)
    assert entry["frame_count"] == 7
    assert [frame["frame"] for frame in entry["frames"]] == [0, 3, 6]
    assert [frame["seconds"] for frame in entry["frames"]] == pytest.approx([0, 0.3, 0.6])
    assert [face["emotion"] for frame in entry["frames"] for face in frame["faces"]] == ["happy", "angry", "happy"]
    assert [face["track"] for frame in entry["frames"] for face in frame["faces"]] == [1, 1, 1]
    frames, _ = read_video(Path(entry["annotated"]))
    assert [drawn_emotion(frame) for frame in frames] == ["happy"] * 3 + ["angry"] * 3 + ["happy"]
    assert [row["frame"] for row in read_table(Path(entry["csv"]))] == ["0", "3", "6"]
    assert "7 frames (3 looked at)" in predict(clip, "--every", 3)[1]


def test_the_library_gives_each_frame_with_its_faces(cropped: Recognizer, tmp_path: Path) -> None:
    clip = two_emotions(tmp_path / "clip.mp4")
    frames = list(cropped.predict_video(clip, every=4))
    assert [frame.number for frame in frames] == list(range(10))
    assert [frame.looked_at for frame in frames] == [i % 4 == 0 for i in range(10)]
    assert [frame.predictions[0].emotion for frame in frames] == ["happy"] * 8 + ["angry"] * 2
    assert all(np.abs(frame.image.astype(int) - band_frame(HAPPY)).mean() < 5 for frame in frames[:6])
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"every is .*; expected a whole number, 1 or more"):
            cropped.predict_video(clip, every=every)  # type: ignore[arg-type]


def test_two_faces_that_move_keep_their_numbers(predict: Any, tmp_path: Path) -> None:
    """A face and its mirror image in one photograph, and the left one is gone for a frame; the numbers are drawn."""
    photo = cv2.resize(cv2.imread(str(ASTRONAUT))[:400, 60:400], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    left, right = photo, np.full_like(photo, 128)
    frames = [np.hstack([left, np.roll(photo[:, ::-1], 5 * step, axis=1)]) for step in range(3)]
    frames[1][:, : photo.shape[1]] = right
    clip = write_video(tmp_path / "clip.mp4", frames)
    code, _, _ = predict(clip, face="detect")
    assert code == 0
    rows = read_table(tmp_path / "out" / "clip.csv")
    sides = {("left" if float(row["x"]) < photo.shape[1] - 40 else "right", row["track"]) for row in rows}
    assert len(rows) == 5
    assert sides in ({("left", "1"), ("right", "2")}, {("left", "2"), ("right", "1")})


def test_many_frames_are_recognised_as_few_are(
    cropped: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = two_emotions(tmp_path / "clip.mp4")
    batches = []
    original = cropped.predict_batch
    monkeypatch.setattr(cropped, "predict_batch", lambda images: batches.append(len(images)) or original(images))
    monkeypatch.setattr("predict.video.CHUNK_PIXELS", 4 * 96 * 96)  # what four frames have
    emotions = [frame.predictions[0].emotion for frame in cropped.predict_video(clip)]
    assert emotions == ["happy"] * 6 + ["angry"] * 4
    assert batches == [4, 4, 2]


def test_a_face_in_a_photograph_that_moves(predict: Any, tmp_path: Path) -> None:
    photo = cv2.resize(cv2.imread(str(ASTRONAUT)), (256, 256), interpolation=cv2.INTER_AREA)
    blank = np.full_like(photo, 128)
    clip = write_video(tmp_path / "clip.mp4", [photo, np.roll(photo, 40, axis=1), blank])
    code, out, _ = predict(clip, face="detect")
    assert code == 0
    assert "3 frames, 0.3 s, 2 faces; " in out
    assert out.splitlines()[0].endswith("no face 33%")
    first, second = read_table(tmp_path / "out" / "clip.csv")
    assert float(first["x"]) == pytest.approx(91, abs=4)
    assert float(second["x"]) - float(first["x"]) == pytest.approx(40, abs=4)
    assert float(first["confidence"]) > 0.9


def test_videos_stand_among_images_in_their_order(predict: Any, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    for name in ("a.png", "d.png"):
        cv2.imwrite(str(folder / name), band_face(HAPPY))
    write_video(folder / "b.mp4", [band_frame(ANGRY)])
    write_video(folder / "b.AVI", [band_frame(HAPPY)], codec="MJPG")
    (folder / "notes.txt").touch()
    code, out, _ = predict(folder, "--json")
    entries = json.loads(out)
    assert code == 0
    assert [Path(entry["file"]).name for entry in entries] == ["a.png", "b.AVI", "b.mp4", "d.png"]
    assert [entry.get("csv") and Path(entry["csv"]).name for entry in entries] == [None, "b.csv", "b-2.csv", None]
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b-2.csv", "b-2.mp4", "b.csv", "b.mp4", "d.png"]
    assert entries[2]["frames"][0]["faces"][0]["emotion"] == "angry"
    (tmp_path / "bare").mkdir()
    assert predict(tmp_path / "bare")[2] == f"error: {tmp_path}/bare: no images or videos in this folder\n"


def test_a_video_is_never_replaced_by_its_annotated_copy(predict: Any, tmp_path: Path) -> None:
    clip = two_emotions(tmp_path / "clip.mp4")
    before = clip.read_bytes()
    with pytest.raises(StageError, match=r"clip\.mp4: would be replaced by its annotated copy"):
        predict(clip, output=tmp_path)
    assert clip.read_bytes() == before
    assert predict(clip, "--no-pictures", output=tmp_path)[0] == 0  # then nothing would be
    assert clip.read_bytes() == before
    assert (tmp_path / "clip.csv").is_file()


def bad_videos(folder: Path) -> dict[Path, str]:
    """Files that are no videos, and what is said of each."""
    good = two_emotions(folder / "good.mp4").read_bytes()
    empty, text, cut = (folder / f"{name}.mp4" for name in ("empty", "text", "cut"))
    empty.touch()
    text.write_text("no video\n" * 100)
    cut.write_bytes(good[: len(good) // 2])
    unknown = folder / "unknown.mp4"
    unknown.write_bytes(good.replace(b"mp4v", b"zzzz").replace(b"esds", b"zzzz"))
    none = folder / "none.mp4"
    cv2.VideoWriter(str(none), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 96)).release()
    head = folder / "head.avi"
    head.write_bytes(write_video(folder / "good.avi", [band_frame(HAPPY)], codec="MJPG").read_bytes()[:4000])
    bytes_name = folder / os.fsdecode(b"\xff.mp4")
    bytes_name.write_bytes(good)
    return {
        empty: "the file is empty; expected a video",
        text: "not a video, cut off, or of a codec that is not there; expected a video that OpenCV's FFmpeg reads",
        cut: "not a video, cut off, or of a codec",
        unknown: "not a video, cut off, or of a codec",
        none: "not a video, cut off, or of a codec",
        head: "not a video, cut off, or of a codec",
        folder / "missing.mp4": "no such file; expected a video",
        bytes_name: "the name is not UTF-8",
    }


def test_bad_files_have_a_message_each_and_do_not_stop_the_rest(predict: Any, tmp_path: Path) -> None:
    bad = bad_videos(tmp_path)
    code, out, err = predict(*bad, tmp_path / "good.mp4")
    assert code == 1
    assert out.startswith(f"{tmp_path}/good.mp4 (96×96): 10 frames")
    lines = err.splitlines()
    assert len(lines) == len(bad)
    for line, (path, problem) in zip(lines, bad.items(), strict=True):
        assert line.startswith("error: ")
        assert path.name.encode("utf-8", "backslashreplace").decode() in line
        assert problem in line
    assert sorted(os.listdir(tmp_path / "out")) == ["good.csv", "good.mp4"]


def test_ffmpeg_and_opencv_say_nothing_themselves(tmp_path: Path) -> None:
    bad = bad_videos(tmp_path)
    command = [sys.executable, "-m", "predict", *map(str, bad), "--output", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=ASTRONAUT.parents[1], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert [line.split(":")[0] for line in run.stderr.splitlines()] == ["error"] * len(bad)
    assert run.stderr.count("not a video") == 5  # of which FFmpeg and OpenCV would have said more


@pytest.mark.parametrize("level", [None, "16"])
def test_threads_leave_the_environment_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str | None
) -> None:
    """FFmpeg is silenced by a variable while a video is opened; threads that open videos at once overlap in that."""
    name = "OPENCV_FFMPEG_LOGLEVEL"
    monkeypatch.delenv(name, raising=False)
    if level:
        monkeypatch.setenv(name, level)
    clip = two_emotions(tmp_path / "clip.mp4")

    def frames(_: int) -> int:
        with Video(clip) as video:
            return len(list(video))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(frames, range(150))) == [10] * 150
    assert os.environ.get(name) == level


def test_a_folder_named_as_a_video_is_read_as_a_folder(predict: Any, cropped: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    cv2.imwrite(str(tmp_path / "a.mp4" / "face.png"), band_face(HAPPY))
    assert predict(tmp_path / "a.mp4")[1].startswith(f"{tmp_path}/a.mp4/face.png (48×48): 1 face")
    with pytest.raises(VideoError, match=r"a\.mp4: a folder; expected a video"):
        cropped.predict_video(tmp_path / "a.mp4")


def test_frames_that_end_early_are_answered_and_are_an_error(predict: Any, cropped: Recognizer, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    data = write_video(tmp_path / "whole.avi", list(noise), codec="MJPG").read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(data[: len(data) // 2])
    assert predict(tmp_path / "whole.avi")[0] == 0
    code, out, err = predict(cut, "--json")
    (entry,) = json.loads(out)
    count = entry["frame_count"]
    assert code == 1
    assert 10 < count < 30
    assert entry["error"] == f"{cut}: cut off or damaged: its frames end after {count}; expected 40"
    assert err == f"error: {entry['error']}\n"
    assert len(entry["frames"]) == len(read_video(Path(entry["annotated"]))[0]) == count
    frames = cropped.predict_video(cut)
    assert [next(frames).number for _ in range(count)] == list(range(count))
    with pytest.raises(VideoError, match="expected 40"):
        next(frames)


def test_one_grey_frame(predict: Any, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", [band_frame(HAPPY)[..., 0]])
    code, out, _ = predict(clip)
    assert code == 0
    assert "(96×96): 1 frame, 0.1 s, 1 face; happy 100%" in out
    assert len(read_video(tmp_path / "out" / "clip.mp4")[0]) == 1


def test_a_video_that_says_that_it_is_turned_is_turned_back(cropped: Recognizer, tmp_path: Path) -> None:
    """The header's matrix (ISO 14496-12, tkhd) is what phones write: a quarter turn clockwise when shown."""
    upright = np.zeros((96, 64, 3), np.uint8)
    upright[:20, :20] = 255
    clip = write_video(tmp_path / "clip.mp4", [np.ascontiguousarray(np.rot90(upright))] * 2)
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[at : at + 36])[:2] == (0x10000, 0)
    data[at : at + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 64 << 16, 0, 0x40000000)
    clip.write_bytes(data)
    frames = list(cropped.predict_video(clip))
    assert frames[0].image.shape == (96, 64, 3)
    assert np.abs(frames[0].image.astype(int) - upright).mean() < 6


def test_a_name_that_ffmpeg_would_take_for_a_protocol_or_a_sequence(
    predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["pipe:1.mp4", "clip%03d.mp4", "-x.mp4", "é 'b\".mp4"]
    for name in names:
        two_emotions(tmp_path / "clip.mp4").rename(tmp_path / name)
    code, _, err = predict(*(f"./{name}" if name.startswith("-") else name for name in names), output=Path("out"))
    assert (code, err) == (0, "")
    for name in names:
        assert len(read_video(tmp_path / "out" / name)[0] if "%" not in name else [0] * 10) == 10
        assert (tmp_path / "out" / name).stat().st_size > 1000


# Cameras, and clocks


class FakeCapture:
    """Stands in for cv2.VideoCapture: frames with timestamps; `then` is called before each is read."""

    def __init__(
        self,
        frames: list[np.ndarray],
        fps: float = 10.0,
        milliseconds: list[float] | None = None,
        then: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.frames, self.then = frames, then
        self.properties = {
            cv2.CAP_PROP_FPS: fps,
            cv2.CAP_PROP_FRAME_COUNT: -1.0,
            cv2.CAP_PROP_FRAME_WIDTH: float(frames[0].shape[1]),
            cv2.CAP_PROP_FRAME_HEIGHT: float(frames[0].shape[0]),
        }
        self.milliseconds = milliseconds or [0.0] * len(frames)
        self.read_frames = 0
        self.released = False

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, what: int) -> float:
        return self.milliseconds[self.read_frames - 1] if what == cv2.CAP_PROP_POS_MSEC else self.properties[what]

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.then(self.read_frames)
        if self.read_frames == len(self.frames):
            return False, None
        self.read_frames += 1
        return True, self.frames[self.read_frames - 1]

    def release(self) -> None:
        self.released = True


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeCapture]:
    """Put a fake in the place of one source; all others are opened as ever. Its clock is `clock[0]`, in seconds."""
    original = cv2.VideoCapture

    def put(source: int | str, *arguments: Any, **options: Any) -> FakeCapture:
        fake = FakeCapture(*arguments, **options)
        monkeypatch.setattr(
            cv2, "VideoCapture", lambda asked, *rest: fake if asked == source else original(asked, *rest)
        )
        return fake

    return put


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("predict.video.time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("fps", "milliseconds", "seconds"),
    [
        (10.0, [0, 100, 450, 460], [0, 0.1, 0.45, 0.46]),  # a rate that varies
        (10.0, [500, 600, 700, 800], [0, 0.1, 0.2, 0.3]),  # a clock that begins elsewhere
        (10.0, [0, 0, 0, 0], [0, 0.1, 0.2, 0.3]),  # none
        (10.0, [0, 100, 50, 250], [0, 0.1, 0.2, 0.25]),  # one that goes back
        (10.0, [0, 100, float("nan"), 400], [0, 0.1, 0.2, 0.4]),
        (0.0, [0, 0, 0, 0], [0, 1 / USUAL_RATE, 2 / USUAL_RATE, 3 / USUAL_RATE]),  # no rate either
        (90000.0, [0, 0, 0, 0], [0, 1 / USUAL_RATE, 2 / USUAL_RATE, 3 / USUAL_RATE]),  # MPEG's clock for a rate
    ],
)
def test_seconds_are_the_videos_own_where_they_go_forward(
    predict: Any, connect: Any, tmp_path: Path, fps: float, milliseconds: list[float], seconds: list[float]
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_text("what the fake stands for")
    fake = connect(str(clip), [band_frame(HAPPY)] * 4, fps, milliseconds)
    code, out, _ = predict(clip, "--json")
    (entry,) = json.loads(out)
    assert code == 0
    assert [frame["seconds"] for frame in entry["frames"]] == pytest.approx(seconds, abs=0.0006)
    assert entry["fps"] == (10 if fps == 10 else USUAL_RATE)
    assert len(read_video(Path(entry["annotated"]))[0]) == 4
    assert fake.released


def test_frames_of_another_size_are_resized(tmp_path: Path) -> None:
    """As a stream may have them; dark above and bright below."""
    video = AnnotatedVideo(tmp_path / "clip.mp4", (64, 48), 10)
    for number, (height, width) in enumerate(((48, 64), (96, 32), (30, 200))):
        image = np.zeros((height, width, 3), np.uint8)
        image[height // 2 :] = 255
        video.write(VideoFrame(number, number / 10, image, [], True))
    video.finish()
    frames, _ = read_video(tmp_path / "clip.mp4")
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    for frame in frames:
        assert frame[:20].mean() < 20
        assert frame[28:].mean() > 235


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 80), (65, 49), (64, 49), (3, 50), (1, 1)])
def test_sizes(predict: Any, connect: Any, tmp_path: Path, width: int, height: int) -> None:
    """By a fake, since OpenCV writes even sides alone; the copy of an odd one is a pixel longer, and nothing is cut."""
    clip = tmp_path / "clip.mp4"
    clip.write_text("what the fake stands for")
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, -1] = frame[-1] = 255
    connect(str(clip), [frame] * 2)
    code, out, err = predict(clip, face="detect")
    assert (code, err) == (0, "")
    assert f"({width}×{height}): 2 frames" in out
    frames, _ = read_video(tmp_path / "out" / "clip.mp4")
    assert [frame.shape for frame in frames] == [(height + height % 2, width + width % 2, 3)] * 2
    assert frames[1][-1, -1].min() > 180


def test_a_size_that_changes_is_brought_to_the_first(predict: Any, connect: Any, tmp_path: Path) -> None:
    connect("rtsp://host/stream", [band_frame(HAPPY), band_frame(ANGRY, 4)])
    code, out, _ = predict("--camera", "rtsp://host/stream", "--json")
    (entry,) = json.loads(out)
    assert code == 0
    assert [frame["faces"][0]["box"] for frame in entry["frames"]] == [[0, 0, 96, 96], [0, 0, 192, 192]]
    frames, _ = read_video(Path(entry["annotated"]))
    assert [drawn_emotion(frame) for frame in frames] == ["happy", "angry"]
    assert {frame.shape for frame in frames} == {(96, 96, 3)}


def camera_files(output: Path) -> tuple[Path, Path]:
    table, copy = sorted(output.iterdir())
    assert (table.suffix, copy.suffix, table.stem) == (".csv", ".mp4", copy.stem)
    return table, copy


def test_ctrl_c_ends_a_camera_with_files_that_are_whole(
    predict: Any, connect: Any, clock: list[float], tmp_path: Path
) -> None:
    def then(number: int) -> None:
        clock[0] += 0.1
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)

    fake = connect(0, [band_frame(HAPPY)] * 3 + [band_frame(ANGRY)] * 9, then=then)
    before = signal.getsignal(signal.SIGINT)
    code, out, err = predict("--camera", 0)
    assert (code, err) == (0, "")
    table, copy = camera_files(tmp_path / "out")
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [[f"{i / 10:.2f}", "s"] for i in range(5)]
    assert lines[0].split()[2:8] == ["#1", "0", "0", "96", "96", "happy"]
    assert float(lines[0].split()[8].rstrip("%")) > 90
    assert lines[5] == "camera 0 (96×96): 5 frames, 0.4 s, 5 faces; happy 60%, angry 40%"
    assert lines[6] == f"written: {table}, {copy}"
    assert [row["emotion"] for row in read_table(table)] == ["happy"] * 3 + ["angry"] * 2
    assert [drawn_emotion(frame) for frame in read_video(copy)[0]] == ["happy"] * 3 + ["angry"] * 2
    assert fake.released
    assert signal.getsignal(signal.SIGINT) is before


def test_the_copy_of_a_slow_camera_keeps_the_time(
    predict: Any, connect: Any, clock: list[float], tmp_path: Path
) -> None:
    steps = iter([0.0, 0.04, 0.5])  # seconds before each frame; it says that it gives 10 a second

    def then(number: int) -> None:
        clock[0] += next(steps)

    connect(0, [band_frame(k) for k in (HAPPY, ANGRY, HAPPY)], then=then)
    code, out, _ = predict("--camera", 0, "--seconds", 0.5, "--json")
    (entry,) = json.loads(out)
    assert code == 0
    assert entry["file"] == "camera 0"
    assert [frame["seconds"] for frame in entry["frames"]] == pytest.approx([0, 0.04, 0.54])
    emotions = [drawn_emotion(frame) for frame in read_video(Path(entry["annotated"]))[0]]
    assert emotions == ["happy"] * 6  # the one at 0.04 s has no place between 0 and 0.1 s


def test_a_camera_that_stops_is_an_error_beside_what_it_gave(
    predict: Any, connect: Any, clock: list[float], tmp_path: Path
) -> None:
    connect(0, [band_frame(HAPPY)] * 2, then=lambda number: clock.__setitem__(0, clock[0] + 0.1))
    code, out, err = predict("--camera", 0)
    assert code == 1
    assert "2 frames" in out
    assert err == "error: camera 0: stopped after 2 frames; expected more of them until Ctrl-C\n"
    assert len(read_table(camera_files(tmp_path / "out")[0])) == 2


def test_a_stream_has_its_own_clock_and_may_end(predict: Any, connect: Any, tmp_path: Path) -> None:
    address = "rtsp://host/stream"
    connect(address, [band_frame(HAPPY)] * 4, 10.0, [7e6, 7e6 + 100, 9e9, 9e9 + 100])  # it jumps
    code, out, err = predict("--camera", address, "--json")
    (entry,) = json.loads(out)
    assert (code, err) == (0, "")
    assert (entry["file"], entry["frame_count"]) == (address, 4)
    assert [frame["seconds"] for frame in entry["frames"]] == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("source", ["97", "nothing", "99999999999", "http://127.0.0.1:9/clip.mp4"])
def test_a_camera_that_is_not_there_is_one_line(predict: Any, tmp_path: Path, source: str) -> None:
    code, out, err = predict("--camera", source)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert source in err
    assert "expected" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", [-1, 1 << 31, True, None, 0.0])
def test_what_can_be_no_source_is_an_error(cropped: Recognizer, source: Any) -> None:
    """OpenCV's answer to camera -1 is a segmentation fault where there is no camera."""
    with pytest.raises(VideoError, match=rf"^source is {source!r}; expected a video file, the number of a camera"):
        cropped.predict_video(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected files, or --camera"),
        (["a.mp4", "--camera", "0"], "not both"),
        (["a.mp4", "--seconds", "3"], "--seconds is 3, but there is no --camera"),
        (["a.mp4", "--every", "0"], "'0'; expected a whole number, 1 or more"),
        (["--camera", "0", "--seconds", "-1"], "'-1'; expected a number of seconds above 0"),
    ],
)
def test_arguments_that_do_not_fit(
    predict: Any, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        predict(*arguments)
    assert ended.value.code == 2
    assert message in capfd.readouterr().err


# What cannot be written, and what shall not be


def test_without_pictures_there_is_the_table_alone(predict: Any, tmp_path: Path) -> None:
    clip = two_emotions(tmp_path / "clip.mp4")
    cv2.imwrite(str(tmp_path / "face.png"), band_face(HAPPY))
    code, out, _ = predict(tmp_path / "face.png", clip, "--no-pictures", "--json")
    image, video = json.loads(out)
    assert code == 0
    assert (image["annotated"], video["annotated"]) == (None, None)
    assert image["faces"][0]["emotion"] == "happy"
    assert len(video["frames"]) == 10
    assert os.listdir(tmp_path / "out") == ["clip.csv"]
    assert "annotated" not in predict(tmp_path / "face.png", "--no-pictures")[1]


def test_answers_are_printed_where_nothing_can_be_written(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "out"
    clip, photo = two_emotions(tmp_path / "clip.mp4"), tmp_path / "face.png"
    cv2.imwrite(str(photo), band_face(HAPPY))
    code, out, err = predict(photo, clip, "--json", output=output)
    image, video = json.loads(out)
    assert code == 1
    assert image["faces"][0]["emotion"] == "happy"
    assert len(video["frames"]) == 10
    assert (image["annotated"], video["annotated"], video["csv"]) == (None, None, None)
    assert image["error"].startswith(
        f"{output}/face.png: cannot be written: Not a directory; expected a folder with room"
    )
    assert [line.split(": ")[1] for line in err.splitlines()] == [
        f"{output}/{name}" for name in ("face.png", "clip.csv", "clip.mp4")
    ]
    code, out, _ = predict(photo, output=output)
    assert code == 1
    assert out.startswith(f"{photo} (48×48): 1 face")
    assert "annotated" not in out
    assert predict(photo, "--no-pictures", output=output)[0] == 0


def noise_frames(count: int) -> list[VideoFrame]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 240, 320, 3), np.uint8)
    return [VideoFrame(i, i / 10, image, [], True) for i, image in enumerate(noise)]


def test_a_full_disk_leaves_the_old_video_and_no_other(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    target = tmp_path / "clip.mp4"
    target.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    video = AnnotatedVideo(target, (320, 240), 10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # what a file may have, in bytes
    try:
        for frame in noise_frames(20):
            video.write(frame)
        with pytest.raises(StageError, match=r"clip\.mp4: 0 of 20 frames could be written; expected a disk with room"):
            video.finish()
        video.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("clip.mp4", "old")]


def test_an_interrupted_video_leaves_nothing(predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = two_emotions(tmp_path / "clip.mp4")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clip.csv").write_text("old")
    original, reads = Video._read, itertools.count()

    def interrupted(video: Video) -> np.ndarray | None:
        if next(reads) == 5:
            raise KeyboardInterrupt
        return original(video)

    monkeypatch.setattr("predict.video.CHUNK_FRAMES", 2)
    monkeypatch.setattr(Video, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(clip)
    assert [(file.name, file.read_text()) for file in (tmp_path / "out").iterdir()] == [("clip.csv", "old")]


def test_what_the_codec_cannot_hold_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"clip\.mp4: OpenCV cannot write 9000×16 at 10 .*--no-pictures"):
        AnnotatedVideo(tmp_path / "clip.mp4", (9000, 16), 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0.1, 7.3, 24000 / 1001, 30000 / 1001, 119.88, 1000 / 3, 999.99])
def test_rates(tmp_path: Path, fps: float) -> None:
    video = AnnotatedVideo(tmp_path / "clip.mp4", (16, 16), fps)
    for i in range(3):
        video.write(VideoFrame(i, i / fps, np.zeros((16, 16, 3), np.uint8), [], True))
    video.finish()
    frames, written = read_video(tmp_path / "clip.mp4")
    assert len(frames) == 3
    assert written == pytest.approx(fps, rel=1e-4)
