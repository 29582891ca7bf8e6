"""Writes train_val.prototxt, solver.prototxt and deploy.prototxt of the networks in networks.py, a folder each.

python -m prototxt.build            all of them
python -m prototxt.build resnet18   one
python -m prototxt.build --table    a Markdown table of all folders here, those written by hand too
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

from google.protobuf import text_format

import caffe
from caffe import NetSpec
from caffe import layers as L
from caffe.complexity import complexity
from caffe.proto.caffe_pb2 import TEST, TRAIN, LayerParameter, NetParameter

from .networks import BASE_LR, CROP, DEFAULT_BASE_LR, DEFAULT_CROP, NETWORKS, PAIRS

FOLDER = Path(__file__).resolve().parent
WRITTEN = "Written by prototxt/build.py: change it in prototxt/networks.py."

# The recipe that all of them share: an epoch is 449 iterations, the 28,709 training faces at batch 64.
PATHS = """\
# Paths are relative to the repository's root; `python -m train` replaces them with those of its data set.
"""
TRAIN_DATA = """\
layer {
  name: "data"
  type: "Data"
  top: "data"
  top: "label"
  include { phase: TRAINSTAGE }
  transform_param {  # random crops, mirrored at random
    crop_size: CROP mirror: true mean_file: "data/fer2013/mean.binaryproto"
    AUGMENTATION
  }
  data_param { source: "data/fer2013/lmdb/train_lmdb" backend: LMDB batch_size: 64 shuffle: trueLABELS }
}
"""
STRONG = """random_rotation: 10 random_scale: 0.1 random_shift: 0.05
    random_contrast: 0.2 random_brightness: 0.1 random_erasing: 0.25"""
# stages that solver prototxts ask for: written by hand, `light` where epochs are few and `mixup` where others teach;
# written here, `mixed`
LIGHT = "random_rotation: 8 random_scale: 0.08"
MIXED = "mixed"
STAGES = {"light": LIGHT, "mixup": f"{LIGHT} mixup_alpha: 0.4", MIXED: f"{STRONG} mixup_alpha: 0.4"}
STAGES_OF = {
    "face_resnet": ("light", "mixup"),
    "face_resnet16": ("mixup",),
    "face_resnet16_pair": ("mixup",),
    "resnet18": (MIXED,),
    "resnet34": (MIXED,),
}
TEST_DATA = """\
layer {
  name: "data"
  type: "Data"
  top: "data"
  top: "label"
  include { phase: TEST }
  transform_param { crop_size: CROP mean_file: "data/fer2013/mean.binaryproto" }  # the centre crop
  data_param { source: "data/fer2013/lmdb/val_lmdb" backend: LMDB batch_size: 97 }  # 37 batches are all 3,589
}
"""
LOSS = """\
layer {
  name: "loss"
  type: "SoftmaxWithLoss"
  bottom: "score"
  bottom: "label"
  top: "loss"
  loss_param { label_smoothing: 0.1 }  # in TRAIN
}
layer { name: "accuracy" type: "Accuracy" bottom: "score" bottom: "label" top: "accuracy" }
"""
# of PAIRS: in training scores of each face alone and of both, behind each other in the batch
PAIR_LOSS = """\
layer {
  name: "labels"  # thrice
  type: "Concat"
  bottom: "label"
  bottom: "label"
  bottom: "label"
  top: "labels"
  include { phase: TRAIN }
  concat_param { axis: 0 }
}
layer {
  name: "loss"
  type: "SoftmaxWithLoss"
  bottom: "score"
  bottom: "labels"
  top: "loss"
  include { phase: TRAIN }
  loss_param { label_smoothing: 0.1 }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" include { phase: TEST } }
layer { name: "accuracy" type: "Accuracy" bottom: "score" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
INPUT = """\
layer {
  name: "data"
  type: "Input"
  top: "data"
  input_param { shape { dim: 1 dim: CHANNELS dim: CROP dim: CROP } }  # grey FACE, 0..255, minus the mean
}
"""
PROB = 'layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }\n'
SOLVER = """\
# The modern recipe: Nesterov's momentum, a rate that rises for an epoch and falls as a cosine, averaged weights.
# 100 epochs of the 28,709 training faces at batch 64: 449 iterations an epoch. `python -m train` rescales max_iter and
# the intervals to EPOCHS and to the data set. Caffe itself knows no warmup_iter, ema_decay, precision and cosine.
# {written}
net: "prototxt/{name}/train_val.prototxt"
{state}test_iter: 37
test_interval: 449
type: "Nesterov"
base_lr: {base_lr}
lr_policy: "cosine"
warmup_iter: 449
max_iter: 44900
momentum: 0.9
weight_decay: 0.0005
ema_decay: 0.999
display: 100
average_loss: 100
snapshot: 449
snapshot_prefix: "data/fer2013/runs/{run}/{name}"
random_seed: 1
solver_mode: CPU
precision: AUTO    # bfloat16 where the processor multiplies it in hardware, else float32
"""


def body(name: str) -> list[LayerParameter]:
    """The layers between data and loss, with all that training needs."""
    n = NetSpec()
    n.data = L.Input()
    NETWORKS[name](n)
    return list(n.to_proto().layer)[1:]


def for_training(layers: list[LayerParameter]) -> list[LayerParameter]:
    """The layers of one of PAIRS, whose scores in training are of each face alone and of both."""
    *layers, score = layers
    n = NetSpec()
    n.pool, n.both = L.Input(ntop=2)
    n.each = L.Concat(n.pool, n.both, axis=0, include={"phase": TRAIN})
    n.drop = L.Dropout(n.each, dropout_ratio=0.4, in_place=True, include={"phase": TRAIN})
    each = LayerParameter()
    each.CopyFrom(score)
    each.bottom[:] = ["each"]
    for layer, phase in ((each, TRAIN), (score, TEST)):
        layer.include.add(phase=phase)
    return [*layers, *list(n.to_proto().layer)[1:], each, score]


def for_deploy(layer: LayerParameter) -> LayerParameter:
    """A layer without what only training looks at: fillers, multipliers of rate and decay, BatchNorm's averaging."""
    kept = LayerParameter()
    kept.CopyFrom(layer)
    kept.ClearField("param")
    kept.ClearField("batch_norm_param")
    for field in ("convolution_param", "inner_product_param"):
        if kept.HasField(field):
            getattr(kept, field).ClearField("weight_filler")
    return kept


def layer_lines(layers: list[LayerParameter]) -> str:
    """The layers as text, one a line."""
    return "".join(f"layer {{ {text_format.MessageToString(layer, as_one_line=True)} }}\n" for layer in layers)


def data_layers(name: str) -> str:
    """The training net's Data layers: for TRAIN, for the stages that it has by STAGES_OF, for TEST."""
    recipes = {"": STRONG}
    if name in STAGES_OF:
        recipes = {"".join(f' not_stage: "{stage}"' for stage in STAGES_OF[name]): STRONG}
        recipes |= {f' stage: "{stage}"': STAGES[stage] for stage in STAGES_OF[name]}
    train = [
        TRAIN_DATA.replace("STAGE", rule)
        .replace("AUGMENTATION", augmentation)
        .replace("LABELS", " classes: 7" if "mixup_alpha" in augmentation else "")
        for rule, augmentation in recipes.items()
    ]
    return (PATHS + "".join(train) + TEST_DATA).replace("CROP", str(CROP.get(name, DEFAULT_CROP)))


def head(name: str, deploy: str) -> str:
    """The comment that a net prototxt begins with, and its name: what it is, how large and how costly."""
    size = complexity(caffe.Net(text_format.Parse(deploy, NetParameter()), caffe.TEST))
    crop = CROP.get(name, DEFAULT_CROP)
    counts = f"{size.parameters:,} parameters, {size.multiply_adds:,} multiply-adds for a face of {crop}×{crop}."
    lines = [*inspect.cleandoc(NETWORKS[name].__doc__ or "").splitlines(), "", counts, WRITTEN]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + f'name: "{name}"\n'


def prototxts(name: str) -> dict[str, str]:
    """The text of a network's files, by file name."""
    layers, crop = body(name), str(CROP.get(name, DEFAULT_CROP))
    deployed = layer_lines([for_deploy(layer) for layer in layers if layer.type != "Dropout"])
    channels = "2" if name in PAIRS else "1"
    face = "faces" if name in PAIRS else "face"
    deploy = INPUT.replace("CHANNELS", channels).replace("CROP", crop).replace("FACE", face) + deployed + PROB
    comment = head(name, deploy)
    end = layer_lines(for_training(layers)) + PAIR_LOSS if name in PAIRS else layer_lines(layers) + LOSS
    solver = {"name": name, "base_lr": BASE_LR.get(name, DEFAULT_BASE_LR), "written": WRITTEN}
    files = {
        "train_val.prototxt": comment + data_layers(name) + end,
        "solver.prototxt": SOLVER.format(**solver, run=name, state=""),
        "deploy.prototxt": comment + deploy,
    }
    if MIXED in STAGES_OF.get(name, ()):
        state = f'train_state {{ stage: "{MIXED}" }}  # faces mixed two by two as well\n'
        files[f"solver_{MIXED}.prototxt"] = SOLVER.format(**solver, run=f"{name}_{MIXED}", state=state)
    if name in PAIRS:
        files = {file: text.replace("data/fer2013/", "data/fer2013/both/") for file, text in files.items()}
    return files


def table() -> str:
    """A Markdown table of the networks here: parameters, multiply-adds of one face, papers in the head comment."""
    lines = ["| network | parameters | multiply-adds | published |", "|---|---:|---:|---|"]
    for folder in sorted(path.parent for path in FOLDER.glob("*/train_val.prototxt")):
        comment = "".join(re.findall(r"^#.*\n", (folder / "train_val.prototxt").read_text("utf-8"), re.MULTILINE))
        papers = dict.fromkeys(re.findall(r"arXiv (\d+\.\d+)", comment))
        size = complexity(caffe.Net(folder / "deploy.prototxt", caffe.TEST))
        links = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers)
        lines.append(f"| `{folder.name}` | {size.parameters:,} | {size.multiply_adds:,} | {links or '–'} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m prototxt.build", description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", choices=NETWORKS, metavar="NAME", help="one network (default: all)")
    parser.add_argument("--table", action="store_true", help="print a Markdown table of the folders and write nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    for name in [arguments.name] if arguments.name else NETWORKS:
        (FOLDER / name).mkdir(exist_ok=True)
        for file, text in prototxts(name).items():
            (FOLDER / name / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
