"""What `pip install .` puts elsewhere is the whole recogniser: nets, weights and types are in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("face_resnet16_pair", "face_emotion_net", "mini_xception")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of packages that setuptools would put into a wheel."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("installed")
    commands = ["egg_info", "-e", str(folder), "build_py", "-d", str(folder / "lib")]
    subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", *commands], cwd=ROOT, check=True
    )
    return folder / "lib"


def test_it_recognises_without_the_repository(installed: Path, tmp_path: Path) -> None:
    script = (
        "import predict, sys; r = predict.Recognizer(device='cpu');"
        "print(predict.__file__, r.network.weights, *[face.emotion for face in r.predict(sys.argv[1])], sep='\\n')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "images" / "astronaut.png")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    module, weights, *emotions = answer.stdout.splitlines()
    assert Path(module) == installed / "predict" / "__init__.py"
    assert Path(weights).is_relative_to(installed)
    assert emotions == ["happy"]


@pytest.mark.parametrize("model", MODELS)
def test_the_nets_that_ship_are_in_it(installed: Path, model: str) -> None:
    for file in (ROOT / "prototxt" / model).iterdir():
        assert (installed / "prototxt" / model / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("package", ["caffe", "preprocessing", "train", "predict", "explain"])
def test_type_checkers_are_told_that_it_is_typed(installed: Path, package: str) -> None:
    assert (installed / package / "py.typed").is_file()  # PEP 561
