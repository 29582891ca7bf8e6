"""The page on a trained net: its figures against counts by hand, its HTML against a parser, hostile names."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from tiny_model import band_face, band_probabilities, make_model

import caffe
from caffe.io import array_to_datum, save_mean
from explain.material import Answered, choose_face, gather, median_face, record_names
from explain.page import Html, breakable, element, escape, face_image, inline_svg, table
from explain.report import (
    SECTIONS,
    calibration,
    confident,
    duration,
    explanations,
    features,
    fields,
    macro_area,
    main,
    some_of,
    summary,
    to_html,
    write_report,
)
from preprocessing.classes import write_classes
from preprocessing.network_input import FaceNetwork
from preprocessing.stage import StageError, run_main, sha256
from train.evaluate import Evaluation, confusion_matrix, write_evaluation

VOID = {"meta", "img", "br", "wbr", "use", "path", "rect", "circle", "line", "stop"}
HOSTILE = ("<script>alert(1)</script>", 'a & "b" $x^', "plain_name")
DEPLOY = """
name: "tiny"  # </pre><script>alert(2)</script>
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 42 dim: 42 } } }
layer { name: "conv$1" type: "Convolution" bottom: "data" top: "conv$1"
  convolution_param { num_output: 3 kernel_size: 6 stride: 6 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv$1" top: "conv$1" }
layer { name: "score" type: "InnerProduct" bottom: "conv$1" top: "score"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }
"""
TRAIN_VAL = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN not_stage: "modern" }
  transform_param { mirror: true crop_size: 42 } data_param { source: "here" batch_size: 64 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN stage: "modern" }
  data_param { source: "elsewhere" batch_size: 32 } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  data_param { source: "val" batch_size: 10 } }
"""
LOG = """I20260101 00:00:01.000000 1 solver.cpp:289] Solving tiny
I20260101 00:00:01.000000 1 solver.cpp:347] Iteration 0, Testing net (#0)
I20260101 00:00:01.000000 1 solver.cpp:414]     Test net output #0: accuracy = 0.25
I20260101 00:00:01.000000 1 solver.cpp:414]     Test net output #1: loss = 1.5 (* 1 = 1.5 loss)
I20260101 00:00:01.000000 1 solver.cpp:239] Iteration 0 (1 iter/s, 1s/1 iters), loss = 1.75
I20260101 00:00:01.000000 1 sgd_solver.cpp:112] Iteration 0, lr = 0.1
I20260101 00:00:02.000000 1 solver.cpp:347] Iteration 5, Testing net (#0)
I20260101 00:00:02.000000 1 solver.cpp:414]     Test net output #0: accuracy = 0.625
I20260101 00:00:02.000000 1 solver.cpp:414]     Test net output #1: loss = 1.125 (* 1 = 1.125 loss)
"""


class Page(HTMLParser):
    """What a page holds: attributes, the text of each section, tables by section, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.section = ""
        self.texts: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self.section] = self.texts.get(self.section, "") + data
        if self.open and {"td", "th"} & set(self.open) and self.rows.get(self.section):
            self.rows[self.section][-1][-1] += data


def keyed_database(path: Path, faces: list[np.ndarray], labels: list[int], names: list[str]) -> Path:
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as transaction:
        for i, (face, label, name) in enumerate(zip(faces, labels, names, strict=True)):
            transaction.put(f"{i:08d}_{name}".encode(), array_to_datum(face[None], label).SerializeToString())
    return path


def write_run(folder: Path) -> Path:
    """A finished run's folder, as train and plot read it, with hostile names in all that comes from files."""
    run = folder / "runs/tiny"
    run.mkdir(parents=True)
    (run / "deploy.prototxt").write_text(DEPLOY)
    net = caffe.Net(str(run / "deploy.prototxt"), caffe.TEST, seed=3)
    net.save(str(run / "tiny.caffemodel"))
    save_mean(run / "mean.binaryproto", np.full((1, 48, 48), 100, np.float32))
    write_classes(run, HOSTILE)
    (run / "train_val.prototxt").write_text(TRAIN_VAL)
    (run / "solver.prototxt").write_text(
        'net: "runs/tiny/train_val.prototxt" base_lr: 0.1 lr_policy: "step" stepvalue: 3 stepvalue: 4 solver_mode: GPU '
        'test_state { stage: "x<y" }'
    )
    (run / "train.log").write_text(LOG)
    (run / "settings.json").write_text(json.dumps({"data": {"train<i>.mdb": "ab12"}}))
    counts = {"iterations": 5, "epochs": 1.0, "iterations_per_epoch": 5, "stopped_early": True}
    counts |= {"chosen": {"iteration": 5, "epoch": 1.0, "accuracy": 0.625}}
    given = {
        "network": "<tiny>",
        "solver": None,
        "device": "cpu",
        "base_lr": 0.05000000074505806,
        "classes": ["a", "b"],
    }
    manifest = {"stage": "train", "settings": given, "counts": counts}
    manifest |= {"inputs": [], "seconds": 75.4, "versions": {"python": "3.x", "lmdb": None}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run's folder, and its page."""
    folder = tmp_path_factory.mktemp("full")
    run = write_run(folder)
    random = np.random.default_rng(0)
    faces = list(random.integers(0, 256, (30, 48, 48)).astype(np.uint8))
    labels = random.integers(0, 3, 30).tolist()
    names = [f"<img src=x>/{i}.png" for i in range(30)]
    databases = {name: [keyed_database(folder / f"lmdb/{name}_lmdb", faces, labels, names)] for name in ("val", "test")}
    write_classes(folder / "lmdb", HOSTILE)
    network = FaceNetwork(
        run / "deploy.prototxt", run / "tiny.caffemodel", run / "mean.binaryproto", "cpu", calibrated=False
    )
    write_evaluation(network, databases, run / "evaluation", ["centre", "mirror"], databases["val"], "val")
    write_report(run, databases, run / "report.html", device="cpu")
    return run, (run / "report.html").read_text(encoding="utf-8")


def bands(folder: Path) -> tuple[Path, dict[str, list[Path]], list[int], list[list[float]]]:
    """The net that answers the brightest band, as it may ship: without log, settings and evaluation.

    Five faces, of which it answers three right.
    """
    make_model(folder / "net", name="net")
    shown = [(0, 200), (1, 100), (2, 150), (3, 50), (3, 250)]
    labels = [0, 1, 2, 4, 0]
    test = keyed_database(
        folder / "test_lmdb", [band_face(*one) for one in shown], labels, [f"{i}.png" for i in range(5)]
    )
    levels = [[float(level) if k == band else 0.0 for k in range(7)] for band, level in shown]
    return folder / "net", {"test": [test]}, labels, levels


def test_the_page_is_html_that_needs_nothing_else(full: tuple[Path, str]) -> None:
    _, text = full
    page = Page(text)
    assert "http" not in text
    assert not {"script", "link", "iframe", "object", "embed", "base"} & page.tags
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "srcset", "poster", "data"):
            assert (tag, value.split(",")[0]) == ("img", "data:image/png;base64")
        if name in ("href", "xlink:href"):
            assert value.startswith("#")
        assert "url(" not in value or "url(#" in value
    style = text.split("<style>")[1].split("</style>")[0]
    assert "overflow-wrap: break-word" in style.split("body {")[1].split("}")[0]  # a file's name may be long
    assert "url(" not in style
    assert "@import" not in style
    assert len(text) < 10e6


def test_links_lead_to_sections_and_ids_are_unique(full: tuple[Path, str]) -> None:
    page = Page(full[1])
    ids = [value for _, name, value in page.attributes if name == "id"]
    links = [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == [name for name, _, _ in SECTIONS]
    assert set(links) <= set(ids)
    sections = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert sections == links
    assert len(ids) == len(set(ids))
    for tag, name, value in page.attributes:
        if tag == "use" and name == "href":
            assert value[1:] in ids
        assert {*re.findall(r"url\(#(.*?)\)", value)} <= {*ids}


def test_what_comes_from_files_is_text(full: tuple[Path, str]) -> None:
    page = Page(full[1])
    for name in HOSTILE:
        assert name in [row[0] for row in page.rows["confusion"]]
        assert name in page.texts["gallery"]
    assert "<img src=x>/" in page.texts["gallery"]
    assert "</pre><script>alert(2)</script>" in page.texts["settings"]
    assert "<tiny>" in page.texts["settings"]
    assert 'stage: "x<y"' in page.texts["settings"]
    assert "train<i>.mdb" in page.texts["settings"]


def test_the_figures_are_those_of_the_evaluation(full: tuple[Path, str]) -> None:
    run, text = full
    page = Page(text)
    recorded = json.loads((run / "evaluation/evaluation.json").read_text())["databases"]["test"]
    counts = [row[1:] for row in page.rows["confusion"][5:]]
    assert counts == [[f"{count:,}" for count in row] for row in recorded["confusion"]]
    summary = {row[0]: row[1:] for row in page.rows["summary"]}
    assert summary["test"][:3] == [
        "30", f"{100 * recorded['accuracy']:.2f}%", f"{100 * recorded['views']['mirror']['accuracy']:.2f}%",
    ]  # fmt: skip
    assert summary["test, without duplicates"][0] == "0"  # val is the training set here, and has the same faces
    classes = {row[0]: row[1:] for row in page.rows["classes"]}
    for name, expected in recorded["classes"].items():
        found = [f"{100 * expected[what]:.1f}%" for what in ("precision", "recall", "f1")]
        assert [*classes[name][:3], classes[name][4]] == [*found, str(expected["support"])]
    facts = page.texts["summary"]
    area = re.search(r"macro AUC([\d.]+)", facts)
    assert area is not None
    assert float(area[1]) == pytest.approx(np.mean([float(classes[name][3]) for name in HOSTILE]), abs=1e-4)
    assert classes["macro average"][3] == area[1]
    assert f"macro F1{100 * recorded['macro']['f1']:.1f}%over 3 classes" in facts
    # 3 filters of 6×6 on 7×7 places, and 3 sums of all that they give
    assert f"parameters{3 * 37 + 3 * 148}learned" in facts
    assert f"multiply-adds{(49 * 3 * 36 + 3 * 147) / 1e6:.2f} M" in facts
    calibration = {row[0]: row[1:] for row in page.rows["calibration"]}
    assert calibration["test"][:2] == [f"{100 * recorded['calibration'][e]:.2f}%" for e in ("ece", "ece_calibrated")]


def test_what_the_run_tells(full: tuple[Path, str]) -> None:
    texts = Page(full[1]).texts
    for told in ("1 min 15 s", "validation accuracy 62.50%", "5 iterations, stopped early"):
        assert told in texts["summary"]
    assert "Epoch 1, training loss 1.75, validation loss 1.125, validation accuracy 62.50%" in texts["curves"]
    assert re.search(r"network<tiny>\s*solver–\s*devicecpu\s*base_lr0.05\s*classesa, b", texts["settings"])
    assert "Trained with python 3.x." in texts["settings"]
    rows = {row[0]: row[1:] for row in Page(full[1]).rows["settings"]}
    assert rows["batch_size"] == ["64", "10"]  # not that of the recipe that was not asked for
    assert rows["source"] == ["here", "val"]
    assert rows["mirror"] == ["true", "–"]
    assert len(rows[str(full[0] / "tiny.caffemodel")][0]) == 64


def test_pictures_of_what_the_net_sees(full: tuple[Path, str]) -> None:
    text = full[1]
    alts = [value for tag, name, value in Page(text).attributes if (tag, name) == ("img", "alt")]
    for expected in ("the filters of the first convolution", "the channels of conv$1", "the channels of prob"):
        assert expected in alts
    assert [f"what speaks for {name}" in alts for name in HOSTILE] == [True] * 3
    labels = [value for _, name, value in Page(text).attributes if name == "aria-label"]
    assert "the layers of tiny" in labels
    assert "conv$1" in Page(text).texts["network"]


def test_a_net_without_log_settings_and_evaluation(tmp_path: Path) -> None:
    folder, databases, labels, levels = bands(tmp_path)
    material = gather(folder, databases, device="cpu")
    page = Page(to_html(material))
    assert "No solver.prototxt" in page.texts["settings"]
    assert "No train_val.prototxt" in page.texts["settings"]
    assert "No manifest.json" in page.texts["settings"]
    assert "No train.log" in page.texts["curves"]
    assert "No temperature was chosen" in page.texts["calibration"]
    assert "in no evaluation.json" in page.texts["summary"]
    assert re.search(r"Not drawn: .*has no Convolution", page.texts["filters"])
    assert re.search(r"Not drawn: .*Grad-CAM needs a layer with a map", page.texts["explanations"])
    summary = {row[0]: row[1:] for row in page.rows["summary"]}
    assert summary["test"] == ["5", "60.00%", "23.1% to 88.2%"]  # Wilson's interval of 3 of 5
    probabilities = np.array([band_probabilities(one) for one in levels])
    assert material.test.confidence == pytest.approx(probabilities.max(axis=1), abs=1e-5)
    assert confident(material.test, right=False) == {0: [4], 4: [3]}
    assert confident(material.test, right=True) == {0: [0], 1: [1], 2: [2]}
    classes = {row[0]: row[1:] for row in page.rows["classes"]}
    for number, name in ((0, "angry"), (4, "sad")):
        of_class = np.array(labels) == number
        positive, others = probabilities[of_class, number], probabilities[~of_class, number]
        wins = [(p > others).sum() + 0.5 * (p == others).sum() for p in positive]
        assert classes[name][3] == f"{sum(wins) / (len(positive) * len(others)):.4f}"
    assert classes["happy"][3] == "–"  # no such face
    assert material.face_name == "2.png"  # of the right answers, with 200, 100 and 150 on black, the one in the middle


def test_the_answers_are_not_calibrated_and_the_calibration_is_told(tmp_path: Path) -> None:
    folder, databases, labels, levels = bands(tmp_path)
    known = {"temperatures": {"centre": 2.0}, "weights_sha256": sha256(folder / "net.caffemodel")}
    (folder / "calibration.json").write_text(json.dumps(known))
    material = gather(folder, databases, device="cpu")
    assert material.temperature == (2.0, "calibration.json")
    probabilities = np.array([band_probabilities(one) for one in levels])
    assert material.test.confidence == pytest.approx(probabilities.max(axis=1), abs=1e-5)
    softened = np.array([band_probabilities([level / 2 for level in one]) for one in levels])  # the levels are logits
    told = str(calibration(material))
    for each in (probabilities, softened):
        assert f"{-np.log(each[range(5), labels]).mean():.4f}" in told


def answered(labels: list[int], probabilities: list[list[float]]) -> Answered:
    answers = np.array(probabilities)
    confusion = confusion_matrix(np.array(labels), answers.argmax(axis=1), answers.shape[1])
    classes = tuple("abc"[: answers.shape[1]])
    evaluation = Evaluation("test", "", classes, {"centre": confusion}, {}, np.array(labels), {"centre": answers})
    return Answered(evaluation, np.zeros((len(labels), 1, 2, 2), np.uint8), [str(i) for i in range(len(labels))])


def test_the_most_confident_answers_by_class() -> None:
    one = answered([0, 0, 1, 1, 0], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6], [0.05, 0.95]])
    assert confident(one, right=False, count=2) == {0: [4, 1]}
    assert confident(one, right=False, count=3) == {0: [4, 1], 1: [2]}
    assert confident(one, right=True, count=2) == {0: [0], 1: [3]}


def test_the_face_that_stands_for_all() -> None:
    assert median_face(np.array([0.1, 0.9, 0.5, 0.3]), np.array([True, True, True, False])) == 2
    assert median_face(np.array([0.1, 0.9, 0.5, 0.3]), np.ones(4, bool)) == 3  # the lower one of the two in the middle
    assert choose_face(answered([0, 0, 0], [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])) == 1
    assert choose_face(answered([1, 1, 1], [[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]])) == 2


def test_a_class_without_images_has_no_area() -> None:
    one = answered([0, 1, 0], [[0.5, 0.3, 0.2], [0.4, 0.5, 0.1], [0.3, 0.6, 0.1]])
    # a: pairs 0.5 > 0.4 and 0.3 < 0.4; b: 0.5 > 0.3 and 0.5 < 0.6
    assert macro_area(one) == 0.5
    assert macro_area(answered([0, 0], [[0.5, 0.5], [0.4, 0.6]])) is None


def test_names_of_records_of_classes_that_the_net_lacks_are_left_out(tmp_path: Path) -> None:
    files = make_model(tmp_path / "net", classes=2)
    write_classes(tmp_path / "net", ["happy", "sad"])
    faces = [band_face(0)] * 4
    path = keyed_database(tmp_path / "data/test_lmdb", faces, [0, 1, 2, 1], ["a_1.png", "b.png", "c.png", "d"])
    write_classes(tmp_path / "data", ["sad", "happy", "bored"])
    network = FaceNetwork(*files, "cpu")
    assert record_names([path], network) == ["a_1.png", "b.png", "d"]


def test_an_evaluation_that_counts_otherwise_is_remarked(full: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = full
    recorded = json.loads((run / "evaluation/evaluation.json").read_text())
    recorded["databases"]["test"]["correct"] += 1
    (tmp_path / "other.json").write_text(json.dumps(recorded))
    test = {"test": [run.parents[1] / "lmdb/test_lmdb"]}
    told = summary(gather(run / "tiny.caffemodel", test, tmp_path / "other.json", device="cpu"))
    assert f"evaluation.json counts {recorded['databases']['test']['correct']} right answers on test" in told
    assert "evaluation.json counts" not in summary(gather(run, test, device="cpu"))


def test_what_cannot_be_reported_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, databases, *_ = bands(tmp_path)
    output = tmp_path / "page.html"
    with pytest.raises(StageError, match="no --lmdb"):
        write_report(folder, {}, output)
    with pytest.raises(StageError, match="none: no such folder"):
        write_report(tmp_path / "none", databases, output)
    with pytest.raises(StageError, match=r"gone\.json: no such file"):
        write_report(folder, databases, output, tmp_path / "gone.json", device="cpu")
    (tmp_path / "no.jpg").write_text("no image")
    with pytest.raises(StageError, match=r"no\.jpg"):
        write_report(folder, databases, output, None, tmp_path / "no.jpg", "none", "cpu")
    for name, content, message in (
        ("settings.json", "[", "not JSON"),
        ("settings.json", "[]", "list; expected a JSON object"),
        ("manifest.json", '{"stage": "align"}', "not what `python -m train` writes"),
    ):
        (folder / name).write_text(content)
        with pytest.raises(StageError, match=message):
            write_report(folder, databases, output, device="cpu")
        (folder / name).unlink()
    (folder / "evaluation").mkdir()
    (folder / "evaluation/evaluation.json").write_text('{"databases": {"test": {"views": {"side": {}}}}}')
    with pytest.raises(StageError, match="has the views 'side'; expected some of centre"):
        write_report(folder, databases, output, device="cpu")
    for content, message in (
        ('{"databases": {"test": {"views": {"centre": {}}}}}', "KeyError"),
        ('{"calibration": {"temperature": 0}}', "evaluation.json: .*temperature is 0.0, not above 0"),
        ('{"calibration": {"temperature": "warm"}}', "evaluation.json: ValueError"),
    ):
        (folder / "evaluation/evaluation.json").write_text(content)
        with pytest.raises(StageError, match=message):
            write_report(folder, databases, output, device="cpu")
    (folder / "evaluation/evaluation.json").write_text("{}")
    lacking = {"stage": "train", "settings": {}, "counts": {"epochs": 1}, "seconds": 1, "inputs": [], "versions": {}}
    (folder / "manifest.json").write_text(json.dumps(lacking))
    with pytest.raises(StageError, match=r"KeyError\('chosen'\); expected manifest\.json, settings\.json and"):
        write_report(folder, databases, output, device="cpu")
    (folder / "manifest.json").unlink()
    (folder / "evaluation/evaluation.json").write_text('{"databases": {"test": 3}}')
    monkeypatch.setattr(
        sys, "argv", ["report", str(folder), "--lmdb", f"test={databases['test'][0]}", "--device", "cpu"]
    )
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert (caught.value.code, list(tmp_path.glob("**/*.html"))) == (1, [])
    assert "evaluation.json: TypeError" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["report", str(folder), "--lmdb", "test"])
    with pytest.raises(SystemExit):
        main()
    assert "expected NAME=PATH" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "shown"), [(b"me.png", "me.png"), (b"m\xe9.png", r"m\udce9.png")])
def test_a_photo_whose_face_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, shown: str) -> None:
    folder, databases, *_ = bands(tmp_path)
    photo = tmp_path / os.fsdecode(name)
    photo.write_bytes(cv2.imencode(".png", band_face(5))[1].tobytes())
    arguments = ["report", str(folder), "--lmdb", f"test={databases['test'][0]}", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--image", str(photo), "--face", "none"])
    main()
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert f"The face: {shown}" in page.texts["features"]
    material = gather(folder, databases, None, photo, "none", "cpu")
    assert (material.face[0] == band_face(5)).all()


def test_a_net_of_coloured_faces(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    deploy = tmp_path / "net/deploy.prototxt"
    deploy.write_text(DEPLOY.replace("dim: 1 dim: 1", "dim: 1 dim: 3"))
    caffe.Net(str(deploy), caffe.TEST, seed=3).save(str(tmp_path / "net/net.caffemodel"))
    save_mean(tmp_path / "net/mean.binaryproto", np.full((3, 48, 48), 100, np.float32))
    write_classes(tmp_path / "net", HOSTILE)
    path = tmp_path / "test_lmdb"
    path.mkdir()
    blue = np.zeros((3, 48, 48), np.uint8)
    blue[0] = 255
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as transaction:
        transaction.put(b"00000000_a.png", array_to_datum(blue, 2).SerializeToString())
    write_classes(tmp_path, HOSTILE)
    material = gather(tmp_path / "net", {"test": [path]}, device="cpu")
    assert (material.face == blue).all()
    assert "all channels" in str(features(material)).lower()
    with pytest.raises(StageError, match="the faces have 3 channels; expected grey ones"):
        explanations(material)
    data = base64.b64decode(str(face_image(blue, "blue")).split("base64,")[1].split('"')[0])
    assert (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) == [255, 0, 0]).all()  # BGR


def test_databases_that_leave_nothing(tmp_path: Path) -> None:
    folder, _, *_ = bands(tmp_path)
    write_classes(folder, ["a", "b", "c", "d", "e", "f", "angry"])
    path = keyed_database(tmp_path / "other/test_lmdb", [band_face(0)], [1], ["x"])
    write_classes(tmp_path / "other", ["angry", "bored"])
    with pytest.raises(StageError, match="no face of a class of the net"):
        gather(folder, {"test": [path]}, device="cpu")


def test_escaping() -> None:
    assert escape('<a href="x">\'&') == "&lt;a href=&quot;x&quot;&gt;&#x27;&amp;"
    assert escape(Html("<b>")) == "<b>"
    assert element("p", "<", kind='"') == '<p class="&quot;">&lt;</p>'
    assert breakable("a/<b_c") == "a/<wbr>&lt;b_<wbr>c"
    assert "<td>&lt;i&gt;</td>" in table(["a", "b"], [["x", "<i>"]])
    namespaces = 'xmlns="http://y" xmlns:xlink="http://z"'
    document = f'<?xml version="1.0"?><!DOCTYPE svg "http://x"><svg {namespaces} width="1"><use xlink:href="#a"/></svg>'
    assert inline_svg(document, 'a"b') == '<svg role="img" aria-label="a&quot;b" width="1"><use href="#a"/></svg>'


def test_settings_as_a_prototxt_writes_them() -> None:
    from google.protobuf import text_format

    from caffe.proto.caffe_pb2 import SolverParameter

    solver = text_format.Parse(
        'base_lr: 0.01 test_iter: 3 test_iter: 4 lr_policy: "step" solver_mode: CPU debug_info: true '
        'train_state { stage: "a" }',
        SolverParameter(),
    )
    assert dict(fields(solver)) == {
        "base_lr": "0.01", "test_iter": "3, 4", "lr_policy": "step", "solver_mode": "CPU", "debug_info": "true",
        "train_state": 'stage: "a"',
    }  # fmt: skip


def test_seconds_as_people_say_them() -> None:
    told = {seconds: duration(seconds) for seconds in (4.26, 59.6, 119.6, 3599.7, 7325)}
    assert list(told.values()) == ["4.3 s", "1 min 0 s", "2 min 0 s", "1 h 0 min", "2 h 2 min"]


def test_some_of_many_names() -> None:
    names = [str(i) for i in range(100)]
    assert some_of(names[:3]) == ["0", "1", "2"]
    chosen = some_of(names, 5)
    assert chosen == ["0", "25", "50", "74", "99"]
