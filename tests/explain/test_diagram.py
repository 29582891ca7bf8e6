"""The picture of a net: every layer in one box, no box over another, no edge through a box, and readable as XML."""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from google.protobuf import text_format

import caffe
from caffe.complexity import complexity
from caffe.proto.caffe_pb2 import NetParameter
from explain.diagram import main, net_diagram
from preprocessing.stage import StageError, run_main

PROTOTXT = Path(__file__).parents[2] / "prototxt"
SVG = "{http://www.w3.org/2000/svg}"
NETS = ("face_emotion_net", "mini_xception", "face_resnet", "mini_concat_xception_v3", "shufflenet_v2")

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }\n'


def net_of(text: str) -> NetParameter:
    return text_format.Parse(INPUT + text, NetParameter())


def convolution(name: str, bottom: str, settings: str = "num_output: 2 kernel_size: 1", more: str = "") -> str:
    kind = f'type: "Convolution" convolution_param {{ {settings} }}'
    return f'layer {{ name: "{name}" bottom: "{bottom}" top: "{name}" {kind} {more} }}\n'


def in_place(name: str, kind: str, blob: str) -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{blob}" top: "{blob}" }}\n'


def add(name: str, *bottoms: str) -> str:
    return f'layer {{ name: "{name}" type: "Eltwise" top: "{name}" {" ".join(f"bottom: {b!r}" for b in bottoms)} }}\n'


class Picture:
    """What an SVG shows: boxes by their first layer's name (left, top, right, bottom), their texts, edges as points."""

    def __init__(self, svg: str) -> None:
        self.root = ElementTree.fromstring(svg)
        self.size = float(self.root.get("width", 0)), float(self.root.get("height", 0))
        self.boxes: dict[str, tuple[float, ...]] = {}
        self.texts: dict[str, list[str]] = {}
        self.layers: list[str] = []
        for group in self.root.iter(f"{SVG}g"):
            rectangle, title = group.find(f"{SVG}rect"), group.findtext(f"{SVG}title", "")
            assert rectangle is not None
            left, top, width, height = (float(rectangle.get(key, 0)) for key in ("x", "y", "width", "height"))
            names = [part.rsplit(" (", 1)[0] for part in title.split(", ")]
            self.layers += names
            self.boxes[names[0]] = left, top, left + width, top + height
            self.texts[names[0]] = [text.text or "" for text in group.iter(f"{SVG}text")]
        paths = [path.get("d", "") for path in self.root.iter(f"{SVG}path") if path.get("marker-end")]
        self.edges = [points_of(path) for path in paths]

    def links(self) -> Counter[tuple[str, str]]:
        """Which box each edge leaves, and which it comes to."""
        found: Counter[tuple[str, str]] = Counter()
        for points in self.edges:
            (start,) = [n for n, box in self.boxes.items() if on_side(points[0], box, box[3])]
            (end,) = [n for n, box in self.boxes.items() if on_side(points[-1], box, box[1])]
            found[start, end] += 1
        return found


def on_side(point: tuple[float, float], box: tuple[float, ...], y: float) -> bool:
    return box[0] <= point[0] <= box[2] and abs(point[1] - y) < 0.2


def points_of(path: str) -> list[tuple[float, float]]:
    """Points along a path of M, V and C, close together."""
    points: list[tuple[float, float]] = []
    for command, text in re.findall(r"([MVC])([^MVC]*)", path):
        values = [float(value) for value in text.split()]
        if command == "M":
            points.append((values[0], values[1]))
        elif command == "V":
            x, y = points[-1]
            points += [(x, float(value)) for value in np.linspace(y, values[0], 20)]
        else:
            corners = np.array([points[-1], *zip(values[::2], values[1::2], strict=True)])
            t = np.linspace(0, 1, 20)[:, None]
            weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
            points += [(float(x), float(y)) for x, y in weights @ corners]
    return points


def check_layout(picture: Picture) -> None:
    """No box over another or outside, no edge through a box or off the picture, and all edges run down."""
    boxes = list(picture.boxes.values())
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    width, height = picture.size
    assert all(left >= 0 and top >= 0 and right <= width and bottom <= height for left, top, right, bottom in boxes)
    array = np.array(boxes)
    for edge in picture.edges:
        points = np.array(edge)
        x, y = points[:, :1], points[:, 1:]
        inside = (x > array[:, 0]) & (x < array[:, 2]) & (y > array[:, 1] + 0.2) & (y < array[:, 3] - 0.2)
        assert not inside.any()
        assert ((x >= 0) & (x <= width)).all()
        assert (np.diff(points[:, 1]) >= -1e-6).all()


@pytest.mark.parametrize("name", NETS)
def test_the_projects_nets(name: str) -> None:
    path = PROTOTXT / name / "deploy.prototxt"
    picture = Picture(net_diagram(path))
    net = caffe.Net(str(path), caffe.TEST)
    assert sorted(picture.layers) == sorted(layer.name for layer in net.layers)  # each once
    check_layout(picture)
    counts = [re.search(r"([\d,]+) parameters?$", texts[-1]) for texts in picture.texts.values()]
    total = sum(int(count[1].replace(",", "")) for count in counts if count)
    assert total == complexity(net).parameters
    assert f"{total:,} parameters" in "".join(picture.root.itertext())


def random_net(seed: int, layers: int = 25) -> tuple[NetParameter, set[tuple[str, str]]]:
    """A net of random reads, and its links as far as they are between boxes."""
    random, names, text, links = np.random.default_rng(seed), ["data"], "", set()
    for i in range(layers):
        name = f"layer{i}_{'x' * int(random.integers(0, 20))}"
        bottoms = sorted({str(b) for b in random.choice(names, size=int(random.integers(1, 4)))})
        text += add(name, *bottoms) if len(bottoms) > 1 else convolution(name, bottoms[0])
        links |= {(bottom, name) for bottom in bottoms}
        names.append(name)
    return net_of(text), links


@pytest.mark.parametrize("seed", range(12))
def test_random_nets(seed: int) -> None:
    net, links = random_net(seed)
    picture = Picture(net_diagram(net))
    check_layout(picture)
    assert picture.links() == Counter(links)
    for above, below in links:
        assert picture.boxes[above][3] < picture.boxes[below][1]


def test_a_box_says_what_its_layers_do() -> None:
    settings = "num_output: 6 kernel_h: 3 kernel_w: 5 stride: 2 pad: 1 group: 2 bias_term: false"
    text = convolution("conv", "data", settings) + in_place("bn", "BatchNorm", "conv") + in_place("s", "Scale", "conv")
    text += in_place("r", "ReLU", "conv")
    text += (
        'layer { name: "p" type: "Pooling" bottom: "conv" top: "p" pooling_param { pool: AVE global_pooling: true } }'
    )
    text += 'layer { name: "fc" type: "InnerProduct" bottom: "p" top: "fc" inner_product_param { num_output: 1 } }'
    picture = Picture(net_diagram(net_of(text)))
    assert picture.texts["conv"] == [
        "conv",
        "Convolution 3×5, 6, stride 2, pad 1, group 2",
        "BatchNorm · Scale · ReLU",
        "6×2×1 · 96 parameters",  # 6 filters of 1×3×5, and a factor for each; BatchNorm's sums are not learned
    ]
    assert picture.texts["p"] == ["p", "Pooling ave global", "6×1×1"]
    assert picture.texts["fc"] == ["fc", "InnerProduct 1", "1 · 7 parameters"]


def test_a_chain_is_one_line_and_branches_stand_side_by_side() -> None:
    text = convolution("top", "data") + convolution("left", "top") + convolution("right", "top")
    text += add("sum", "left", "right") + convolution("end", "sum")
    boxes = Picture(net_diagram(net_of(text))).boxes
    middles = {name: (left + right) / 2 for name, (left, _, right, _) in boxes.items()}
    trunk = [middles[name] for name in ("data", "top", "sum", "end")]
    assert max(trunk) - min(trunk) < 0.11  # numbers are written to a tenth of a pixel
    assert boxes["left"][1] == boxes["right"][1]
    assert middles["left"] < middles["top"] < middles["right"]


def test_an_edge_that_skips_layers_runs_beside_them() -> None:
    text = convolution("a", "data") + convolution("b", "a") + convolution("c", "b") + add("sum", "a", "c")
    picture = Picture(net_diagram(net_of(text)))
    check_layout(picture)
    assert picture.links() == Counter([("data", "a"), ("a", "b"), ("b", "c"), ("a", "sum"), ("c", "sum")])


def test_branches_that_cross_in_the_prototxt_do_not_in_the_picture() -> None:
    text = convolution("a1", "data") + convolution("b1", "data") + convolution("b2", "b1") + convolution("a2", "a1")
    boxes = Picture(net_diagram(net_of(text + add("sum", "b2", "a2")))).boxes
    assert (boxes["a1"][0] < boxes["b1"][0]) == (boxes["a2"][0] < boxes["b2"][0])


def test_a_layer_in_place_behind_another_reader_has_a_box_of_its_own() -> None:
    text = (
        convolution("a", "data")
        + convolution("before", "a")
        + in_place("relu", "ReLU", "a")
        + add("sum", "a", "before")
    )
    picture = Picture(net_diagram(net_of(text)))
    assert picture.links() == Counter(
        [("data", "a"), ("a", "before"), ("a", "relu"), ("relu", "sum"), ("before", "sum")]
    )


def test_shared_parameters_count_once() -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    picture = Picture(net_diagram(net_of(convolution("a", "data", more=shared) + convolution("b", "a", more=shared))))
    assert picture.texts["a"][-1] == "2×4×4 · 6 parameters"
    assert picture.texts["b"][-1] == "2×4×4"


def test_300_layers() -> None:
    names = ["data"]
    text = ""
    for i in range(100):
        text += convolution(f"c{i}", names[-1]) + in_place(f"r{i}", "ReLU", f"c{i}") + add(f"s{i}", f"c{i}", names[-1])
        names.append(f"s{i}")
    picture = Picture(net_diagram(net_of(text)))
    assert len(picture.layers) == len(set(picture.layers)) == 301
    check_layout(picture)
    assert picture.size[0] < 800


def test_names_are_text_and_no_markup() -> None:
    name = "<b>&\\x01]]>"
    net = net_of(convolution("placeholder", "data"))
    net.name = "\"/><script>alert('1')</script>"
    net.layer[1].name = name.replace("\\x01", "\x01")
    svg = net_diagram(net)
    picture = Picture(svg)
    assert picture.layers == ["data", "<b>&\N{REPLACEMENT CHARACTER}]]>"]
    assert "<script" not in svg
    assert net.name in "".join(picture.root.itertext())
    assert picture.root.get("aria-label") == f"the layers of {net.name}"
    long = "a" * 90
    net.layer[1].name = long
    picture = Picture(net_diagram(net, title="A & B"))
    assert picture.texts[long][0] == "a" * 39 + "…"
    assert "A & B" in "".join(picture.root.itertext())


def test_it_needs_nothing_else() -> None:
    svg = net_diagram(PROTOTXT / "face_emotion_net" / "deploy.prototxt")
    assert re.findall(r"(?:href|src)=|url\((?!#)|@import|<script|<image", svg) == []
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]


def test_what_is_no_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.prototxt"
    bad.write_text('layer { name: "a" type: "ReLU" bottom: "nothing" top: "a" }')
    with pytest.raises(StageError, match="bottom 'nothing' is no top of an earlier layer"):
        net_diagram(bad)
    for path, message in ((bad, "'nothing'"), (tmp_path / "none.prototxt", "none.prototxt: no such file")):
        monkeypatch.setattr(sys, "argv", ["diagram", str(path), "--output", str(tmp_path / "net.svg")])
        with pytest.raises(SystemExit) as exit_:
            run_main(main)
        assert exit_.value.code == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "net.svg").exists()


def test_the_command_writes_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PROTOTXT / "face_emotion_net" / "deploy.prototxt"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diagram", str(path)])
    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    assert exit_.value.code == 0
    written = tmp_path / "data" / "diagrams" / "face_emotion_net.svg"
    assert written.read_text(encoding="utf-8") == net_diagram(path)
    assert capsys.readouterr().out.startswith("diagram: 11 boxes in data/diagrams/face_emotion_net.svg")
