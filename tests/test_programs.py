"""The programs that docs/python.md shows, but for the one that wants pandas, run as they stand and do what it says."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
IMAGES, TABLES, PANDAS, SERVER, ELSEWHERE = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.DOTALL
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the programs read."""
    folder = tmp_path_factory.mktemp("programs")
    photo = cv2.imread(str(ROOT / "images" / "astronaut.png"))[:256, 100:356]
    cv2.imwrite(str(folder / "face.jpg"), photo)
    cv2.imwrite(str(folder / "blank.png"), np.full((64, 64, 3), 128, np.uint8))
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (256, 256))
    for _ in range(6):
        video.write(photo)
    video.release()
    return folder


def test_images_tables_and_the_net_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(IMAGES, names)
    *answers, error = capsys.readouterr().out.splitlines()
    assert [answer.count("emotion='happy'") for answer in answers] == [1] * 5
    assert error.startswith("not an image; expected JPEG, PNG")
    exec(TABLES, names)
    (face,) = names["recognizer"].predict("face.jpg")
    assert json.loads(capsys.readouterr().out) == [face.to_dict()]
    photo, *frames = names["rows"]
    assert photo == {"file": "face.jpg", **face.to_row()}
    assert [(row["frame"], row["seconds"], row["track"]) for row in frames] == [(0, 0.0, 1), (5, 0.5, 1)]
    exec(ELSEWHERE, names)
    answers = re.findall(r"\[\[(.*?)\]\]", capsys.readouterr().out, re.DOTALL)
    assert len(answers) == 2
    for answer in answers:
        assert [float(value) for value in answer.split()] == pytest.approx(list(face.probabilities.values()), abs=1e-5)


def test_the_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[ThreadingHTTPServer] = []
    serve = ThreadingHTTPServer.serve_forever
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # where http_proxy is set, it does not know of this server
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda server: servers.append(server))
    exec(SERVER.replace("8000", "0"), {})  # any port that is free
    (server,) = servers
    thread = threading.Thread(target=serve, args=(server,))
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with urllib.request.urlopen(address, (folder / "face.jpg").read_bytes()) as response:
            assert [face["emotion"] for face in json.load(response)] == ["happy"]
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(address, b"no image")
        assert error.value.code == 400
        assert json.load(error.value)["error"].startswith("not an image; expected JPEG")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
