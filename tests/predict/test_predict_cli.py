"""`python -m predict`: what it prints, what it writes, and how it ends, on good and bad files."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_model import band_face, make_model

from predict.__main__ import main
from preprocessing.classes import write_classes
from preprocessing.datasets import EMOTIONS
from preprocessing.stage import StageError

ROOT = Path(__file__).parents[2]
ASTRONAUT = ROOT / "images" / "astronaut.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    deploy, weights, mean = make_model(tmp_path_factory.mktemp("model"))
    return ["--deploy", str(deploy), "--weights", str(weights), "--mean", str(mean), "--device", "cpu"]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    folder.mkdir()
    for k in (3, 0):
        cv2.imwrite(str(folder / f"{EMOTIONS[k]}.png"), band_face(k))
    return folder


def call(monkeypatch: Any, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["predict", *(str(argument) for argument in arguments)])
    return main()


def test_faces_of_a_folder(monkeypatch: Any, capsys: Any, model: list[str], faces: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert call(monkeypatch, faces, *model, "--face", "none", "--output", output) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{faces}/angry.png (48×48): 1 face"
    assert lines[1].split()[-7:] == list(EMOTIONS)
    row = lines[2].split()
    assert row[:7] == ["1", "0", "0", "48", "48", "-", "angry"]
    shares = [float(share.rstrip("%")) for share in row[7:]]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(100, abs=0.4)
    assert shares[0] == max(shares)
    assert lines[3] == f"{faces}/happy.png (48×48): 1 face"
    assert lines[-1].startswith(f"predict: 2 images, 2 faces; annotated in {output} (")
    assert sorted(path.name for path in output.iterdir()) == ["angry.png", "happy.png"]
    assert cv2.imread(str(output / "angry.png")).shape[0] >= 480


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_a_face(
    monkeypatch: Any, capsys: Any, model: list[str], faces: Path, tmp_path: Path
) -> None:
    """Images without a face have a row of their name alone; those that cannot be read are errors, and have none."""
    cv2.imwrite(str(faces / "blank.png"), np.full((200, 200, 3), 128, np.uint8))
    shutil.copy(ASTRONAUT, faces / os.fsdecode(b"\xff.png"))  # no UTF-8
    (faces / "broken.png").write_bytes(b"\x89PNG")
    file = tmp_path / "faces.csv"
    file.write_text("old")
    assert call(monkeypatch, faces, *model, "--no-pictures", "--table", file) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"predict: 4 images, 1 face; table in {file} (")
    *nothing, found = read_table(file)
    assert list(found) == ["file", "x", "y", "width", "height", "confidence", "emotion", *EMOTIONS]
    assert [Path(row["file"]).name for row in nothing] == ["angry.png", "blank.png", "happy.png"]
    assert all(set(row.values()) == {row["file"], ""} for row in nothing)
    assert os.fsencode(Path(found["file"]).name) == b"\xff.png"
    assert call(monkeypatch, faces / os.fsdecode(b"\xff.png"), *model, "--no-pictures", "--json") == 0
    (face,) = json.loads(capsys.readouterr().out)[0]["faces"]
    assert [float(found[name]) for name in ("x", "y", "width", "height", "confidence")] == [
        *face["box"],
        face["confidence"],
    ]
    assert found["emotion"] == face["emotion"]
    assert {name: float(found[name]) for name in EMOTIONS} == face["probabilities"]


def test_a_table_that_cannot_be_written_is_an_error_beside_the_answers(
    monkeypatch: Any, capsys: Any, model: list[str], faces: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    table = tmp_path / "file" / "out" / "faces.csv"
    arguments = (faces, *model, "--face", "none", "--no-pictures", "--table")
    assert call(monkeypatch, *arguments, table) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("predict: 2 images, 2 faces (")
    assert captured.err == (
        f"error: {table}: cannot be written: Not a directory; expected a folder with room, in which files may be made\n"
    )
    for wrong in (faces / "angry.png", "faces"):
        with pytest.raises(SystemExit):
            call(monkeypatch, *arguments, wrong)
        assert "expected a name that ends in .csv" in capsys.readouterr().err
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SystemExit):
        call(monkeypatch, *arguments, tmp_path / "folder.csv")
    assert "folder.csv' is a folder; expected a file's name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(monkeypatch, "--camera", "0", *model, "--table", tmp_path / "faces.csv")
    assert "--table is of images; a camera has a CSV of its own" in capsys.readouterr().err
    with pytest.raises(StageError, match=r"clip\.csv: is a video's table; expected another --table"):
        call(monkeypatch, tmp_path / "clip.mp4", *model, "--output", tmp_path, "--table", tmp_path / "clip.csv")


def test_an_interrupt_leaves_the_old_table(monkeypatch: Any, model: list[str], faces: Path, tmp_path: Path) -> None:
    file = tmp_path / "faces.csv"
    file.write_text("old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("predict.__main__.annotate", stop)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, faces, *model, "--face", "none", "--table", file, "--output", tmp_path / "out")
    assert file.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "faces.csv"]


def test_without_an_image_the_old_table_stays(monkeypatch: Any, capsys: Any, model: list[str], tmp_path: Path) -> None:
    file = tmp_path / "faces.csv"
    file.write_text("old")
    assert call(monkeypatch, tmp_path / "none.png", *model, "--table", file) == 1
    assert f"error: {file}: not written; expected an image that can be read" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("faces.csv", "old")]


def test_json_and_nothing_else(monkeypatch: Any, capsys: Any, model: list[str], faces: Path, tmp_path: Path) -> None:
    (faces / "broken.png").write_bytes(b"\x89PNG")
    code = call(
        monkeypatch, faces, tmp_path / "none.jpg", *model, "--face", "none", "--json", "--output", tmp_path / "out"
    )
    captured = capsys.readouterr()
    assert code == 1
    angry, broken, happy, missing = json.loads(captured.out)
    assert (angry["file"], angry["width"], angry["height"]) == (f"{faces}/angry.png", 48, 48)
    assert Path(angry["annotated"]).is_file()
    (face,) = happy["faces"]
    assert face["emotion"] == "happy"
    assert list(face["probabilities"]) == list(EMOTIONS)
    assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert set(broken) == set(missing) == {"file", "error"}
    assert "no such file" in missing["error"]
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["error", "error"]


def test_an_image_that_is_not_square(monkeypatch: Any, capsys: Any, model: list[str], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "wide.png"), cv2.resize(band_face(3), (96, 48)))
    options = [tmp_path / "wide.png", *model, "--face", "none", "--views", "centre", "--output", tmp_path / "out"]
    assert call(monkeypatch, *options, "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["width"], answer["height"], answer["faces"][0]["box"]) == (96, 48, [0, 0, 96, 48])
    assert call(monkeypatch, *options) == 0
    head, _, row, *_ = capsys.readouterr().out.splitlines()
    assert head == f"{tmp_path}/wide.png (96×48): 1 face"
    assert row.split()[:7] == ["1", "0", "0", "96", "48", "-", "happy"]


def test_the_classes_of_a_net_with_other_names(monkeypatch: Any, capsys: Any, faces: Path, tmp_path: Path) -> None:
    deploy, weights, mean = make_model(tmp_path / "model", classes=4)
    names = ("neutral or unsure", "x", "dégoût", "content")
    write_classes(tmp_path / "model", names)
    files = ["--deploy", deploy, "--weights", weights, "--mean", mean, "--device", "cpu", "--views", "centre"]
    options = [*files, "--face", "none", "--output", tmp_path / "out"]
    assert call(monkeypatch, faces / "angry.png", *options, "--json") == 0
    (face,) = json.loads(capsys.readouterr().out)[0]["faces"]
    assert face["emotion"] == names[0]
    assert tuple(face["probabilities"]) == names
    assert call(monkeypatch, faces, *options) == 0
    _, head, first, _, _, second, _ = capsys.readouterr().out.splitlines()
    ends = [head.rindex(name) + len(name) for name in names]
    for row, name in ((first, "neutral or unsure"), (second, "content")):  # the columns stand below their names
        assert name in row[: head.index("x ", 40) - 1]
        assert all(row[end - 1] == "%" for end in ends)
        assert len(row) == len(head)


def test_views_are_averaged(monkeypatch: Any, capsys: Any, model: list[str], faces: Path, tmp_path: Path) -> None:
    options = ["--face", "none", "--json", "--output", tmp_path / "out", "--views", "mirror"]
    assert call(monkeypatch, faces / "angry.png", *model, *options) == 0
    (face,) = json.loads(capsys.readouterr().out)[0]["faces"]
    first, *_, last = face["probabilities"].values()  # the brightest band is the first, mirrored it is the last
    assert first == pytest.approx(last, abs=1e-4)
    assert first > 0.4


def test_a_bad_file_does_not_stop_the_rest(
    monkeypatch: Any, capsys: Any, model: list[str], faces: Path, tmp_path: Path
) -> None:
    good = faces / "happy.png"
    (faces / "cut.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((50, 50, 3), np.uint8))[1].tobytes()[:-90])
    (tmp_path / "bare").mkdir()
    inputs = [tmp_path / "none.png", faces / "cut.jpg", tmp_path / "bare", "zz*.png", good]
    assert call(monkeypatch, *inputs, *model, "--face", "none", "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert f"{good} (48×48): 1 face" in captured.out
    assert "predict: 1 image, 1 face;" in captured.out
    errors = captured.err.splitlines()
    assert len(errors) == 4
    assert all(line.startswith("error: ") for line in errors)
    for line, name in zip(errors, ("none.png", "cut.jpg", "bare", "zz*.png"), strict=True):
        assert name in line


def test_only_bad_files_need_no_model(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    assert call(monkeypatch, tmp_path / "none.png", "--json", "--output", tmp_path) == 1
    assert json.loads(capsys.readouterr().out)[0]["file"] == f"{tmp_path}/none.png"


def test_no_face_is_said_and_is_no_error(monkeypatch: Any, capsys: Any, model: list[str], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((90, 120, 3), 150, np.uint8))
    assert call(monkeypatch, tmp_path / "wall.png", *model, "--output", tmp_path / "out") == 0
    assert f"{tmp_path}/wall.png (120×90): no face found" in capsys.readouterr().out
    assert call(monkeypatch, tmp_path / "wall.png", *model, "--json", "--output", tmp_path / "out") == 0
    assert json.loads(capsys.readouterr().out)[0]["faces"] == []


def test_images_are_never_replaced_by_their_annotated_copies(
    monkeypatch: Any, capsys: Any, model: list[str], faces: Path, tmp_path: Path
) -> None:
    before = (faces / "happy.png").read_bytes()
    monkeypatch.chdir(faces)
    with pytest.raises(Exception, match=r"happy\.png: would be replaced by its annotated copy"):
        call(monkeypatch, "happy.png", *model, "--face", "none", "--output", faces)
    assert (faces / "happy.png").read_bytes() == before


def test_equal_names_get_numbers_and_other_formats_become_png(
    monkeypatch: Any, capsys: Any, model: list[str], faces: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    cv2.imwrite(str(tmp_path / "more" / "happy.png"), band_face(3))
    cv2.imwrite(str(tmp_path / "more" / "happy.bmp"), band_face(3))
    cv2.imwrite(str(tmp_path / "more" / "photo.JPG"), band_face(3))
    inputs = [faces / "happy.png", tmp_path / "more"]
    assert call(monkeypatch, *inputs, *model, "--face", "none", "--output", tmp_path / "out") == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["happy-2.png", "happy-3.png", "happy.png", "photo.JPG"]
    assert (tmp_path / "out" / "photo.JPG").read_bytes()[:2] == b"\xff\xd8"


def test_many_images_of_many_sizes_keep_their_order(
    monkeypatch: Any, capsys: Any, model: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    expected = []
    for i in range(70):  # more than are held at a time
        k = (3 * i) % 7
        cv2.imwrite(str(folder / f"{i:03}.png"), np.kron(band_face(k), np.ones((1 + i % 2, 1 + i % 2), np.uint8)))
        expected.append(EMOTIONS[k])
    options = ["--face", "none", "--views", "centre", "--json", "--output", tmp_path / "out"]
    assert call(monkeypatch, folder, *model, *options) == 0
    results = json.loads(capsys.readouterr().out)
    assert [Path(result["file"]).name for result in results] == [f"{i:03}.png" for i in range(70)]
    assert [result["faces"][0]["emotion"] for result in results] == expected


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_on_a_photograph(model: list[str], tmp_path: Path) -> None:
    run = python("-m", "predict", ASTRONAUT, *model, "--output", tmp_path)
    assert run.returncode == 0
    assert run.stderr == ""
    assert run.stdout.splitlines()[0] == f"{ASTRONAUT} (512×512): 1 face"
    x, y, width, height = (float(value) for value in run.stdout.splitlines()[2].split()[1:5])
    assert (x, y, width, height) == pytest.approx((182, 64, 83, 107), abs=2)  # as the mtcnn package finds it
    assert (tmp_path / "astronaut.png").is_file()


def test_the_command_on_a_model_that_is_not_there(tmp_path: Path) -> None:
    run = python("-m", "predict", ASTRONAUT, "--model", "nothing", "--output", tmp_path)
    assert run.returncode == 1
    assert run.stderr.startswith("error: model 'nothing': ")
    assert run.stdout == ""


def test_what_the_command_imports() -> None:
    run = python("-c", "import sys, predict.__main__; print(*sys.modules)")
    loaded = set(run.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"matplotlib", "tensorflow", "mtcnn", "pandas", "train", "preprocessing.mtcnn"}
