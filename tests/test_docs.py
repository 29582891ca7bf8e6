"""What the documents state about the code: the layers, the tools, the Make targets."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import caffe
from caffe.io import read_net_parameter, read_solver_parameter
from caffe.proto.caffe_pb2 import TRAIN, NetState
from train.__main__ import data_layer, epochs_of

ROOT = Path(__file__).resolve().parent.parent
# Caffe 1.0's catalogue
CAFFE_LAYERS = (
    "AbsVal Accuracy ArgMax BatchNorm BatchReindex Bias BNLL Clip Concat ContrastiveLoss Convolution Crop "
    "Data Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp Filter Flatten HDF5Data "
    "HDF5Output HingeLoss Im2col ImageData InfogainLoss InnerProduct Input Log LRN LSTM MemoryData "
    "MultinomialLogisticLoss MVN Parameter Pooling Power PReLU Python Reduction ReLU Reshape RNN Scale "
    "Sigmoid SigmoidCrossEntropyLoss Silence Slice Softmax SoftmaxWithLoss Split SPP Swish TanH Threshold "
    "Tile WindowData "
)


def test_all_layers_are_there_and_in_the_table() -> None:
    known = caffe.layer_type_list()
    assert set(CAFFE_LAYERS.split()) <= set(known)
    table = (ROOT / "docs" / "caffe.md").read_text().split("## Layers")[1].split("## Nets")[0]
    assert [name for name in known if not re.search(rf"\b{name}\b", table)] == []


def test_the_tools_are_installed_under_the_names_that_the_page_gives() -> None:
    section = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[1].split("\n[")[0]
    scripts = re.findall(r"^(\w+) =", section, re.MULTILINE)
    assert "caffe" in scripts
    page = (ROOT / "docs" / "caffe.md").read_text()
    assert [name for name in scripts if f"`{name}`" not in page and f"`{name} " not in page] == []


def test_the_readmes_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_the_readmes_results_are_those_of_the_page_of_all_results() -> None:
    def figures(path: Path) -> list[tuple[str, ...]]:
        """Of each row on a network: PublicTest, PrivateTest, mirrored, ten crops, without duplicates."""
        rows = [line.split("|") for line in path.read_text("utf-8").splitlines() if line.startswith("|")]
        return [tuple(cell.strip(" *") for cell in row[5:10]) for row in rows if len(row) == 11 and "%" in row[5]]

    readme = figures(ROOT / "README.md")
    assert len(readme) == 5
    assert set(readme) <= set(figures(ROOT / "docs" / "results.md"))


def readme() -> str:
    """The README with its lines joined, so that a sentence may be broken anywhere."""
    return " ".join((ROOT / "README.md").read_text("utf-8").split())


def described(variable: str) -> str:
    """What `make help` says of a variable."""
    found = re.search(rf"^#: (.*)\n{variable} \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_the_default_number_of_epochs_is_that_of_the_solvers() -> None:
    epochs = {
        path.parent.name: epochs_of(read_solver_parameter(path)) for path in ROOT.glob("prototxt/*/solver.prototxt")
    }
    ((usual, count),) = Counter(epochs.values()).most_common(1)
    assert count > len(epochs) / 2
    assert f"max_iter / test_interval, {usual} of most networks;" in described("EPOCHS")
    others = " and ".join(sorted(name for name, number in epochs.items() if number != usual))
    (other,) = set(epochs.values()) - {usual}
    assert f"{usual} of most networks, {other} of {others}, " in readme()


def test_the_recipes_that_read_soft_labels_are_those_that_are_named() -> None:
    recipes: dict[bool, set[str]] = {True: set(), False: set()}
    for path in ROOT.glob("prototxt/*/solver*.prototxt"):
        solver = read_solver_parameter(path)
        state = NetState(phase=TRAIN, stage=solver.train_state.stage)
        data = data_layer(read_net_parameter(path.parent / Path(solver.net).name), state)
        recipes[data.data_param.classes > 0].add(path.stem.removeprefix("solver").lstrip("_"))
    soft = sorted(recipes[True])
    assert not recipes[True] & recipes[False]
    assert f"for SOLVER={' or '.join(soft)} their shares as soft labels" in described("FERPLUS")
    named = " and ".join(f"`SOLVER={name}`" for name in soft)
    assert f"here by the recipes {named};" in readme()
