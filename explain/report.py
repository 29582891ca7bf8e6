"""One HTML page on a trained net: how it was trained, how well and how surely it answers, where it errs, what it sees.

    python -m explain.report data/fer2013/runs/mini_xception --lmdb val=data/fer2013/lmdb/val_lmdb \\
        --lmdb test=data/fer2013/lmdb/test_lmdb [--image face.jpg] [--output RUN/report.html]

The page is one file that refers to no other. What is in the run's folder (settings.json, manifest.json, train.log,
evaluation/) is read from there, and the net answers each face of the databases once. The folder of a net that ships
will do too: what it lacks is said on the page.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import Message
from matplotlib.figure import Figure

import caffe
from caffe.errors import CaffeError
from caffe.io import read_net_parameter, read_solver_parameter
from caffe.phases import filter_net
from caffe.proto.caffe_pb2 import LayerParameter, NetState, SolverParameter
from explain.compare import COLOURS, size
from explain.diagram import net_diagram
from explain.features import channel_names, draw_features, draw_overview, feature_maps, plain
from explain.filters import draw_filters
from explain.material import Answered, Material, gather, median_face
from explain.page import (
    Html,
    Section,
    breakable,
    element,
    face_image,
    figure,
    folded,
    image,
    inline_svg,
    join,
    missing,
    page,
    pairs,
    paragraph,
    png,
    svg,
    table,
)
from explain.saliency import draw_explanation, explain_face
from explain.scores import area_under, corners, roc_curve, wilson_interval
from predict.options import print_any_name
from predict.recognizer import FACES
from preprocessing.stage import Stage, StageError, add_device_argument, replace_file, run_main, sha256
from train.calibrate import calibrate, draw_reliability
from train.evaluate import VIEW_NAMES, class_metrics, macro_averages
from train.plot import plot_log

SHOWN_FACES = 24  # of mistakes, and of right answers
SHOWN_LAYERS = 24  # of which feature maps are drawn
PROTOTXTS = ("solver.prototxt", "train_val.prototxt", "deploy.prototxt")


# ---------------------------------------------------------------------------------------------------------------------
# Summary and settings
# ---------------------------------------------------------------------------------------------------------------------


def percent(share: float, digits: int = 2) -> str:
    """A share as text."""
    return f"{100 * share:.{digits}f}%"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def areas(tested: Answered) -> list[float | None]:
    """The area under the ROC curve of each class against the rest; None for one that all images have, or none."""
    evaluation = tested.evaluation
    found: list[float | None] = []
    for number in range(len(evaluation.classes)):
        positive = evaluation.labels == number
        mixed = positive.any() and not positive.all()
        found.append(area_under(*roc_curve(evaluation.probabilities[:, number], positive)) if mixed else None)
    return found


def macro_area(tested: Answered) -> float | None:
    """The mean of `areas`, where there is one."""
    known = [area for area in areas(tested) if area is not None]
    return statistics.fmean(known) if known else None


def summary(material: Material) -> Html:
    """The figures that one asks for first, and the accuracies by all views."""
    return join([_facts(material), _accuracies(material), *_disagreements(material)])


def _facts(material: Material) -> Html:
    confusion = material.test.evaluation.confusion
    correct, count = int(np.trace(confusion)), int(confusion.sum())
    low, high = wilson_interval(correct, count)
    parameters, multiply_adds = size(Path(material.network.deploy))
    area = macro_area(material.test)
    facts: list[tuple[str, str, str]] = [
        (
            f"accuracy on {material.main}",
            percent(correct / count),
            f"{VIEW_NAMES[material.view]}; 95% interval {percent(low, 1)} to {percent(high, 1)}",
        ),
        (
            "macro F1",
            percent(macro_averages(confusion)["f1"], 1),
            f"over {np.count_nonzero(confusion.sum(axis=1))} classes",
        ),
        ("macro AUC", "–" if area is None else f"{area:.4f}", "one class against the rest"),
        ("parameters", f"{parameters:,}", "learned values"),
        ("multiply-adds", f"{multiply_adds / 1e6:,.2f} M", "one face, one crop"),
    ]
    return element("dl", *(_fact(*fact) for fact in [*facts, *_training_facts(material)]), kind="facts")


def _fact(name: str, value: str, remark: str) -> Html:
    return element("div", element("dt", name), element("dd", value, element("small", remark)))


def _training_facts(material: Material) -> list[tuple[str, str, str]]:
    """Epochs, the chosen one, and the time, where the run's manifest tells."""
    counts = material.manifest.get("counts")
    if not counts:
        return []
    chosen = counts["chosen"]
    facts = [
        (
            "epochs",
            f"{counts['epochs']:.0f}",
            f"{counts['iterations']:,} iterations" + (", stopped early" if counts["stopped_early"] else ""),
        )
    ]
    if "epoch" in chosen:
        facts.append(("chosen epoch", f"{chosen['epoch']:.0f}", f"validation accuracy {percent(chosen['accuracy'])}"))
    else:
        facts.append(("chosen epoch", f"{counts['epochs']:.0f}", "the last"))
    starts = 1
    log = material.folder / "train.log"
    if log.is_file():
        starts = sum("] Solving" in line for line in log.read_text(errors="replace").splitlines())
    remark = f"on {material.manifest['settings']['device']}"
    if starts > 1:
        remark += f", resumed {starts - 1} time{'s' * (starts > 2)}"
    facts.append(
        (
            "training time" if starts < 2 else "training time, last part",
            duration(material.manifest["seconds"]),
            remark,
        )
    )
    return facts


def _accuracies(material: Material) -> Html:
    """The accuracies that evaluation.json has, by views, with and without what stands in the training set too."""
    databases: dict[str, Any] = material.recorded.get("databases", {})
    if not databases:
        rows = [[name, *_counted(tested.evaluation.confusion)] for name, tested in material.tested.items()]
        heads = ["database", "images", VIEW_NAMES[material.view], "95% interval"]
        told = "Other views, and the accuracy without images of the training set, are in no evaluation.json here."
        return join([table(heads, rows, range(1, 4)), missing(told)])
    views = list(dict.fromkeys(view for entry in databases.values() for view in entry["views"]))
    rows = []
    for name, entry in databases.items():
        without = entry.get("without_training_duplicates")
        for kind, shares in ((name, entry), (f"{name}, without duplicates", without)):
            if shares:
                ends = wilson_interval(shares["correct"], shares["images"]) if shares["images"] else (0.0, 1.0)
                by_view = [percent(shares["views"][v]["accuracy"]) if v in shares["views"] else "–" for v in views]
                interval = f"{percent(ends[0], 1)} to {percent(ends[1], 1)}"
                rows.append([kind, f"{shares['images']:,}", *by_view, interval])
    heads = ["database", "images", *(VIEW_NAMES.get(view, view) for view in views)]
    heads.append(f"95% interval ({VIEW_NAMES.get(views[0], views[0])})")
    text = (
        "Without duplicates: without the images that stand, pixel for pixel, in the training set too. Intervals are "
        "Wilson's, as if the faces were drawn independently."
    )
    return join([table(heads, rows, range(1, len(heads))), paragraph(text, kind="quiet")])


def _counted(confusion: np.ndarray) -> list[str]:
    correct, count = int(np.trace(confusion)), int(confusion.sum())
    low, high = wilson_interval(correct, count)
    return [f"{count:,}", percent(correct / count), f"{percent(low, 1)} to {percent(high, 1)}"]


def _disagreements(material: Material) -> list[Html]:
    """Where evaluation.json counts otherwise than the net does now: other weights, another database, another device."""
    lines = []
    for name, tested in material.tested.items():
        recorded = material.recorded.get("databases", {}).get(name)
        correct = int(np.trace(tested.evaluation.confusion))
        if recorded and recorded["correct"] != correct:
            counts = f"evaluation.json counts {recorded['correct']:,} right answers on {name}, the net now gives"
            lines.append(missing(f"{counts} {correct:,}: was something changed since, or is the device another?"))
        if tested.evaluation.foreign:
            classes = ", ".join(f"{count:,} of {name}" for name, count in tested.evaluation.foreign.items())
            lines.append(missing(f"Left out of {name}, since the net lacks the class: {classes}."))
    return lines


def fields(message: Message) -> list[tuple[str, str]]:
    """The fields that a prototxt sets, with their values as it writes them."""
    rows = []
    for descriptor, value in message.ListFields():
        values = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
        if descriptor.enum_type is not None:
            texts = [descriptor.enum_type.values_by_number[number].name for number in values]
        elif descriptor.message_type is not None:
            texts = [text_format.MessageToString(one, as_one_line=True).strip() for one in values]
        else:
            texts = [_scalar(one) for one in values]
        rows.append((descriptor.name, ", ".join(texts)))
    return rows


def _plain_value(value: object) -> str:
    """A value of JSON as people write it; – for none, and for an empty list."""
    if isinstance(value, list):
        return ", ".join(map(_plain_value, value)) or "–"
    return "–" if value is None else _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(material: Material) -> Html:
    """What it was trained by: solver, data, files with their hashes, versions, prototxts."""
    folder, parts = material.folder, []
    if material.manifest:
        given = material.manifest["settings"].items()
        parts.append(element("h3", "Run"))
        parts.append(pairs((name, breakable(_plain_value(value))) for name, value in given))
    solver, solver_file = SolverParameter(), folder / "solver.prototxt"
    net_file = folder / "train_val.prototxt"
    if solver_file.is_file():
        solver = read_solver_parameter(solver_file)
        net_file = folder / Path(solver.net or net_file.name).name
        parts += [element("h3", "Solver"), pairs((name, breakable(value)) for name, value in fields(solver))]
    else:
        parts.append(missing(f"No solver.prototxt in {folder}."))
    if net_file.is_file():
        parts += [element("h3", "Data"), _data_layers(net_file, solver)]
    else:
        parts.append(missing(f"No {net_file.name} in {folder}."))
    parts += [element("h3", "Files and versions"), _hashes(material)]
    for name in dict.fromkeys([PROTOTXTS[0], net_file.name, PROTOTXTS[2]]):
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            parts.append(folded(element("code", name), element("pre", text)))
    return join(parts)


def _data_layers(path: Path, solver: SolverParameter) -> Html:
    """What the layers that read data are set to, a column a phase; of the states that the solver asks for."""
    net = read_net_parameter(path)
    states = {"TRAIN": solver.train_state, "TEST": solver.test_state[0] if solver.test_state else NetState()}
    found: list[tuple[str, dict[str, str]]] = []
    for head, state in states.items():
        net.state.CopyFrom(state)
        net.state.phase = caffe.TRAIN if head == "TRAIN" else caffe.TEST
        for layer in filter_net(net).layer:
            if not layer.bottom and (layer.HasField("data_param") or layer.HasField("transform_param")):
                found.append((head, _layer_settings(layer)))
    if not found:
        return missing(f"No layer of {path.name} reads data.")
    names = dict.fromkeys(name for _, values in found for name in values)
    rows = [[breakable(name), *(breakable(values.get(name, "–")) for _, values in found)] for name in names]
    return table(["setting", *(head for head, _ in found)], rows, kind="fixed")


def _layer_settings(layer: LayerParameter) -> dict[str, str]:
    known = [(name, value) for name, value in fields(layer) if name not in ("name", "top", "include", "phase")]
    flat: dict[str, str] = {}
    for name, value in known:
        if name.endswith("_param"):
            flat.update(fields(getattr(layer, name)))
        else:
            flat[name] = value
    return flat


def _hashes(material: Material) -> Html:
    files = {Path(path): None for path in material.network.files[0].values()}
    hashes: dict[str, str] = {str(path): sha256(path) for path in files}
    hashes |= material.settings.get("data", {})
    hashes |= {entry["file"]: entry["sha256"] for entry in material.manifest.get("inputs", [])}
    rows = [[element("code", breakable(name)), element("code", digest)] for name, digest in hashes.items()]
    versions = material.manifest.get("versions", {})
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    below = paragraph(f"Trained with {told}.") if told else missing("No manifest.json tells the versions.")
    return join([table(["file", "SHA-256"], rows, kind="fixed"), below])


def curves(material: Material) -> Html:
    """Loss and accuracy over the epochs, from the run's log, and the readings as a table."""
    log = material.folder / "train.log"
    if not log.is_file():
        return missing(f"No train.log in {material.folder}: no curves.")
    with tempfile.TemporaryDirectory() as folder:
        plotted = plot_log(log, folder, "test")
        pictures = {path.stem: path.read_bytes() for path in plotted.written if path.suffix == ".png"}
        heads, *rows = (line.split(",") for line in (Path(folder) / "metrics.csv").read_text().splitlines())
    parts: list[Html] = [paragraph(f"{plotted.summary}.".capitalize())]
    parts += [figure(image(data, f"{name} over the training", 900)) for name, data in pictures.items()]
    parts += [missing(f"{note}.") for note in plotted.notes]
    if rows:
        parts.append(folded("The readings at each test", table(heads, rows, range(len(heads)))))
    return join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------


def confusions(material: Material) -> Html:
    """Confusion matrices of the test set: shares by row, and counts."""
    counts = material.test.evaluation.confusion
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support != 0)
    text = (
        f"{support.sum():,} images of {material.main}, by the {VIEW_NAMES[material.view]} view; rows are the true "
        "classes, columns the net's answers."
    )
    by_share = _matrix(material.classes, shares, [[percent(share, 1) for share in row] for row in shares])
    by_count = _matrix(material.classes, shares, [[f"{count:,}" for count in row] for row in counts])
    return join([paragraph(text), element("h3", "Share of the row"), by_share, element("h3", "Images"), by_count])


def _matrix(classes: Sequence[str], shares: np.ndarray, texts: Sequence[Sequence[str]]) -> Html:
    """A matrix whose cells are as dark as their share of the row; text stays legible at 0.7 in light and dark."""
    head = element("tr", element("th", "true \\ answer"), *(element("th", name, kind="n") for name in classes))
    rows = [
        element(
            "tr",
            element("th", name),
            *(
                element("td", texts[i][j], kind="right" if i == j else None, style=f"--share:{0.7 * shares[i, j]:.3f}")
                for j in range(len(classes))
            ),
        )
        for i, name in enumerate(classes)
    ]
    inner = element("table", element("thead", head), element("tbody", *rows), kind="confusion")
    return element("div", inner, kind="scroll")


def per_class(material: Material) -> Html:
    """Precision, recall, F1, AUC and support of each class, and their macro averages."""
    evaluation = material.test.evaluation
    metrics, macro = class_metrics(evaluation.confusion), macro_averages(evaluation.confusion)
    names = ("precision", "recall", "f1")
    rows: list[list[object]] = [
        [
            emotion,
            *(percent(metrics[name][i], 1) for name in names),
            "–" if area is None else f"{area:.4f}",
            f"{metrics['support'][i]:,}",
        ]
        for i, (emotion, area) in enumerate(zip(evaluation.classes, areas(material.test), strict=True))
    ]
    area = macro_area(material.test)
    last = [*(percent(macro[name], 1) for name in names), "–" if area is None else f"{area:.4f}"]
    averages = [element("strong", text) for text in ("macro average", *last)]
    rows.append([*averages, f"{metrics['support'].sum():,}"])
    text = "Macro averages weigh all classes that there are images of alike. A division by zero gives 0."
    heads = ["class", "precision", "recall", "F1", "AUC", "images"]
    return join([table(heads, rows, range(1, 6)), paragraph(text, kind="quiet")])


def ranking(material: Material) -> Html:
    """The ROC curve of each class against the rest."""
    evaluation = material.test.evaluation
    known = [(i, area) for i, area in enumerate(areas(material.test)) if area is not None]
    if not known:
        return missing(f"{material.main} has images of one class alone: no ROC curves.")
    drawn = Figure(figsize=(7.2, 5.6), layout="constrained")
    axes = drawn.subplots()
    axes.plot([0, 1], [0, 1], color="#666666", linestyle=(0, (4, 3)), linewidth=1)
    for i, area in known:
        line = corners(*roc_curve(evaluation.probabilities[:, i], evaluation.labels == i))
        style = "-" if i < len(COLOURS) else "--"
        label = f"{plain(evaluation.classes[i])}: {area:.4f}"
        axes.plot(*line, color=COLOURS[i % len(COLOURS)], linestyle=style, linewidth=1.6, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.003), xlabel="false positive rate", ylabel="true positive rate")
    axes.set_aspect("equal")
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="area under the curve", loc="lower right", framealpha=0.9, edgecolor="none")
    caption = (
        "Each class against the rest, by its probability. The area is the share of the pairs of an image of the class "
        "and one of another in which the first has the higher probability for it; 0.5 is chance."
    )
    return figure(svg(drawn, "roc", "ROC curves of each class against the rest"), caption)


def calibration(material: Material) -> Html:
    """How well the probabilities say how often the net is right, before and after the temperature."""
    temperature, where = material.temperature or (1.0, "")
    found = [
        (name, calibrate(tested.evaluation.probabilities, tested.evaluation.labels, temperature))
        for name, tested in material.tested.items()
    ]
    if material.temperature is None:
        rows = [[name, percent(one.before.error), f"{one.likelihood_before:.4f}"] for name, one in found]
        told = "No temperature was chosen for these weights (train.evaluate --calibrate-on val), so none is applied."
        return join([table(["database", "ECE", "NLL"], rows, range(1, 3)), missing(told)])
    rows = [
        [
            name,
            percent(one.before.error),
            percent(one.after.error),
            f"{one.likelihood_before:.4f}",
            f"{one.likelihood_after:.4f}",
        ]
        for name, one in found
    ]
    heads = ["database", "ECE", "ECE, calibrated", "NLL", "NLL, calibrated"]
    text = (
        f"Expected calibration error and negative log-likelihood (nats), as trained and with the logits divided by the "
        f"temperature {temperature:.4f} of {where}, which changes no answer."
    )
    drawing = svg(draw_reliability(found), "reliability", "reliability diagrams before and after calibration")
    caption = "Bars: how often the net is right, by how sure it is. Calibrated, they end at the diagonal."
    return join([paragraph(text), table(heads, rows, range(1, 5)), figure(drawing, caption)])


def confident(tested: Answered, right: bool, count: int = SHOWN_FACES) -> dict[int, list[int]]:
    """The most confident answers, right or wrong, by true class: numbers of faces, the surest first.

    Mistakes are the `count` surest of all. Right answers are as many of each class, since else they would be of the
    easiest class alone.
    """
    labels = tested.evaluation.labels
    order = np.argsort(-tested.confidence, kind="stable")
    order = order[(tested.predicted == labels)[order] == right]
    share = -(-count // len(tested.evaluation.classes))
    chosen = order if right else order[:count]
    groups = {k: [int(i) for i in chosen if labels[i] == k] for k in range(len(tested.evaluation.classes))}
    return {k: faces[:share] if right else faces for k, faces in groups.items() if faces}


def gallery(material: Material) -> Html:
    """The most confident mistakes, and for comparison the most confident right answers."""
    parts: list[Html] = [
        paragraph(
            f"Confidence is the net's probability of its answer by the {VIEW_NAMES[material.view]} view, before "
            "calibration. Under each face: its class in the data set, the answer where it is another, the file."
        ),
    ]
    mistakes = confident(material.test, right=False)
    if mistakes:
        parts.append(element("h3", f"The {sum(map(len, mistakes.values()))} most confident mistakes"))
        parts.append(element("div", *(_faces(material, k, faces) for k, faces in mistakes.items()), kind="groups"))
    else:
        parts.append(missing(f"The net makes no mistake on {material.main}."))
    parts.append(element("h3", "The most confident right answers of each class"))
    right = confident(material.test, right=True)
    parts.append(element("div", *(_faces(material, k, faces) for k, faces in right.items()), kind="groups"))
    if not right:
        parts.append(missing(f"The net has no right answer on {material.main}."))
    return join(parts)


def _faces(material: Material, label: int, numbers: Sequence[int]) -> Html:
    test, classes = material.test, material.classes
    cards = []
    for number in numbers:
        predicted = int(test.predicted[number])
        told = classes[label] if predicted == label else f"{classes[label]} → {classes[predicted]}"
        caption = element(
            "figcaption",
            element("strong", told),
            f" {percent(test.confidence[number], 1)} ",
            Html("<br>"),
            breakable(test.names[number]),
        )  # fmt: skip
        cards.append(element("figure", face_image(test.images[number], told, 96), caption))
    return element("div", element("h4", classes[label]), element("div", *cards, kind="faces"))


# ---------------------------------------------------------------------------------------------------------------------
# What the net sees
# ---------------------------------------------------------------------------------------------------------------------


def some_of(names: Sequence[str], most: int = SHOWN_LAYERS) -> list[str]:
    """At most so many of the names, evenly spaced, the first and the last among them."""
    if len(names) <= most:
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, most).round().astype(int)]


def features(material: Material) -> Html:
    """What each layer makes of the chosen face."""
    maps = feature_maps(material.network, material.face)
    names = some_of(list(maps))
    title = f"{material.network.name} on {material.face_name}"
    parts = [
        figure(face_image(material.face, f"the face {material.face_name}", 144), f"The face: {material.face_name}"),
        figure(
            png(draw_overview({name: maps[name] for name in names}, title), "the strongest channels of each layer", 100)
        ),
    ]
    if len(names) < len(maps):
        parts.append(missing(f"{len(names)} of the net's {len(maps)} blobs; make features draws all."))
    drawn = [png(draw_features(name, maps[name], title), f"the channels of {name}", 64) for name in names]
    return join([*parts, folded("All channels of these layers", *map(figure, drawn))])


def filters(material: Material) -> Html:
    """The first convolution's filters."""
    return figure(png(draw_filters(material.network), "the filters of the first convolution", 100))


def explanations(material: Material) -> Html:
    """Grad-CAM and guided gradients for a face of each class."""
    test, classes = material.test, material.classes
    if len(material.face) not in (1, 2):
        raise StageError(f"the faces have {len(material.face)} channels; expected grey ones")
    text = (
        "A face of each class, of median confidence among those that the net answers right: what of it speaks for the "
        "class, by Grad-CAM (Selvaraju et al., 2017) and guided backpropagation (Springenberg et al., 2015)."
    )
    parts = [paragraph(text)]
    for label, name in enumerate(classes):
        of_class = test.evaluation.labels == label
        right = of_class & (test.predicted == label)
        if not of_class.any():
            parts.append(missing(f"{name}: {material.main} has no such face."))
            continue
        if right.any():
            number, remark = median_face(test.confidence, right), ""
        else:
            number = int(np.flatnonzero(of_class)[test.evaluation.probabilities[of_class, label].argmax()])
            remark = f" The net answers no {name} right; to this face it says {classes[test.predicted[number]]}."
        for channel, way in enumerate(channel_names(material.network)):
            explanation = explain_face(material.network, test.images[number], label, channel=channel)
            drawn = draw_explanation(test.images[number][channel], explanation, classes, name)
            caption = f"{name}: {test.names[number]}{way}.{remark}"
            parts.append(figure(png(drawn, f"what speaks for {name}{way}", 100), caption))
    return join(parts)


def diagram(material: Material) -> Html:
    """A picture of the net."""
    drawing = inline_svg(net_diagram(material.network.deploy))
    return figure(drawing, "The deploy net: layers, shapes and parameters.", kind="paper tall")


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------

SECTIONS: tuple[tuple[str, str, Callable[[Material], Html]], ...] = (
    ("summary", "Summary", summary),
    ("settings", "Settings", settings),
    ("curves", "Curves", curves),
    ("confusion", "Confusion matrices", confusions),
    ("classes", "Precision and recall", per_class),
    ("roc", "ROC curves", ranking),
    ("calibration", "Calibration", calibration),
    ("gallery", "Most confident answers", gallery),
    ("features", "Feature maps", features),
    ("filters", "Filters", filters),
    ("explanations", "What the answers rest on", explanations),
    ("network", "The network", diagram),
)


def read_strictly(write: Callable[[Material], Html], material: Material) -> Html:
    """A section that is made of JSON files. Raises StageError where they lack, or have otherwise, what it needs."""
    try:
        return write(material)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        files = "manifest.json, settings.json and evaluation.json"
        expected = f"expected {files} as `python -m train` and `train.evaluate` write them"
        raise StageError(f"{material.folder}: {error!r}; {expected}") from error


def to_html(material: Material) -> str:
    """The whole page."""
    sections = []
    for name, title, write in SECTIONS:
        try:
            body = read_strictly(write, material) if name in ("summary", "settings") else write(material)
        except StageError as error:  # such as: the net has no layer with a map
            if name not in ("features", "filters", "explanations", "network"):
                raise
            body = missing(f"Not drawn: {error}.")
        sections.append(Section(name, title, body))
    databases = ", ".join(f"{name} ({tested.evaluation.source})" for name, tested in material.tested.items())
    head = paragraph("Weights ", element("code", material.network.weights), f", tested on {databases}.", kind="quiet")
    foot = f"Written by python -m explain.report {material.network.weights}."
    return page(f"{material.network.name}: report", head, sections, foot)


def write_report(
    net: Path,
    databases: dict[str, list[Path]],
    output: Path,
    evaluation: Path | None = None,
    image_file: Path | None = None,
    face: str = "detect",
    device: str = "auto",
) -> Material:
    """Write the page on a trained net.

    Parameters
    ----------
    net: a finished run's folder, or a shipped net's, with deploy.prototxt, NAME.caffemodel and mean.binaryproto; or a
        .caffemodel with the two others beside it.
    databases: LMDBs by name; several under one name count as one. The figures are of `test`, or of the last.
    output: the page, such as RUN/report.html.
    evaluation: the evaluation.json that tells the accuracies by all views; default: evaluation/evaluation.json in the
        folder, if there is one.
    image_file: a photo of a face, whose feature maps are drawn; default: the face that the net answers right with the
        median confidence.
    face: `detect` finds the face in the photo, `none` takes it as a cropped face.
    device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns what the page was made of. Raises StageError for what is no trained net, databases that do not fit the net,
    and a photo without a face.
    """
    if not databases:
        raise StageError("no --lmdb; expected at least one, such as --lmdb test=data/fer2013/lmdb/test_lmdb")
    stage = Stage("report")
    try:
        material = gather(Path(net), databases, evaluation, image_file, face, device)
        text = to_html(material).encode("utf-8", "backslashreplace")  # a file's name may not be UTF-8
    except CaffeError as error:
        raise StageError(str(error)) from error
    with replace_file(Path(output)) as path:
        path.write_bytes(text)
    confusion = material.test.evaluation.confusion
    accuracy = percent(np.trace(confusion) / confusion.sum())
    stage.summary(
        f"{material.network.name}, {accuracy} of {confusion.sum():,} on {material.main}; {output}, "
        f"{len(text) / 1e6:.1f} MB"
    )
    return material


def named_databases(text: str) -> tuple[str, list[Path]]:
    """NAME=PATH or NAME=PATH,PATH, as `train.evaluate` takes it too."""
    name, _, paths = text.partition("=")
    if not name or not all(paths.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}; expected NAME=PATH, such as test=data/fer2013/lmdb/test_lmdb")
    return name, [Path(path) for path in paths.split(",")]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m explain.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "net", type=Path, metavar="RUN", help="a finished run's folder, a shipped net's, or a .caffemodel in one"
    )
    lmdb: dict[str, Any] = {"type": named_databases, "action": "append", "required": True}
    parser.add_argument("--lmdb", **lmdb, metavar="NAME=PATH[,PATH]", help="a database (repeatable)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: RUN/report.html)")
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="accuracies by all views (default: RUN/evaluation/evaluation.json)",
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="a photo: the feature maps are of its surest face")
    parser.add_argument(
        "--face", choices=FACES, default="detect", help="one: --image shows one face; none: is a cropped one"
    )
    add_device_argument(parser)
    args = parser.parse_args()
    print_any_name()
    databases = dict(args.lmdb)
    if len(databases) != len(args.lmdb):
        parser.error("--lmdb: a name is given twice")
    output = args.output or (args.net.parent if args.net.suffix == ".caffemodel" else args.net) / "report.html"
    write_report(args.net, databases, output, args.evaluation, args.image, args.face, args.device)


if __name__ == "__main__":
    run_main(main)
