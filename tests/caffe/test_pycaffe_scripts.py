"""Scripts as people wrote them for pycaffe in 2015 and 2016, run as they stand; what they compute is checked elsewise.

Each is in the manner of Caffe's notebooks of that time, with nets small enough to be run here.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from google.protobuf import text_format
from small_nets import input_layer, net_of

import caffe
from caffe.proto import caffe_pb2

Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a script's text in an empty folder, as `python script.py` does; returns its variables."""
    monkeypatch.chdir(tmp_path)

    def run_script(text: str) -> dict[str, Any]:
        Path("script.py").write_text(text)
        return runpy.run_path("script.py", run_name="__main__")

    return run_script


# A deploy prototxt in the form of 2014, with the layers of AlexNet.
CAFFENET = """
name: "SmallCaffeNet"
input: "data"
input_dim: 10
input_dim: 3
input_dim: 43
input_dim: 43
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1"
  convolution_param { num_output: 8 kernel_size: 7 stride: 2 weight_filler { type: "gaussian" std: 0.004 } } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layers { name: "norm1" type: LRN bottom: "pool1" top: "norm1"
  lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }
layers { name: "conv2" type: CONVOLUTION bottom: "norm1" top: "conv2"
  convolution_param { num_output: 12 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
layers { name: "relu2" type: RELU bottom: "conv2" top: "conv2" }
layers { name: "pool2" type: POOLING bottom: "conv2" top: "pool2"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layers { name: "fc6" type: INNER_PRODUCT bottom: "pool2" top: "fc6"
  inner_product_param { num_output: 20 weight_filler { type: "xavier" } bias_filler { type: "uniform" } } }
layers { name: "relu6" type: RELU bottom: "fc6" top: "fc6" }
layers { name: "drop6" type: DROPOUT bottom: "fc6" top: "fc6" dropout_param { dropout_ratio: 0.5 } }
layers { name: "fc7" type: INNER_PRODUCT bottom: "fc6" top: "fc7"
  inner_product_param { num_output: 11 weight_filler { type: "xavier" } } }
layers { name: "prob" type: SOFTMAX bottom: "fc7" top: "prob" }
"""


@pytest.fixture
def caffenet(tmp_path: Path) -> None:
    """deploy.prototxt, net.caffemodel, mean.npy, synset_words.txt and cat.jpg in the script's folder."""
    (tmp_path / "deploy.prototxt").write_text(CAFFENET)
    caffe.set_random_seed(1)
    caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST).save(str(tmp_path / "net.caffemodel"))
    np.save(tmp_path / "mean.npy", np.random.default_rng(0).uniform(90, 130, (3, 50, 50)))
    (tmp_path / "synset_words.txt").write_text("".join(f"n{i:08} class {i}, another name\n" for i in range(11)))
    image = cv2.resize(np.random.default_rng(1).integers(0, 256, (9, 12, 3), np.uint8), (120, 90))
    cv2.imwrite(str(tmp_path / "cat.jpg"), image)


CLASSIFICATION = """
import numpy as np
import os
import caffe

caffe.set_mode_cpu()

model_def = 'deploy.prototxt'
model_weights = 'net.caffemodel'

net = caffe.Net(model_def,      # defines the structure of the model
                model_weights,  # contains the trained weights
                caffe.TEST)     # use test mode (e.g., don't perform dropout)

# load the mean image (as distributed with Caffe) for subtraction
mu = np.load('mean.npy')
mu = mu.mean(1).mean(1)  # average over pixels to obtain the mean (BGR) pixel values
print('mean-subtracted values:', list(zip('BGR', mu)))

# create transformer for the input called 'data'
transformer = caffe.io.Transformer({'data': net.blobs['data'].data.shape})

transformer.set_transpose('data', (2,0,1))  # move image channels to outermost dimension
transformer.set_mean('data', mu)            # subtract the dataset-mean value in each channel
transformer.set_raw_scale('data', 255)      # rescale from [0, 1] to [0, 255]
transformer.set_channel_swap('data', (2,1,0))  # swap channels from RGB to BGR

# set the size of the input (we can skip this if we're happy with the default)
net.blobs['data'].reshape(5,        # batch size
                          3,        # 3-channel (BGR) images
                          43, 43)   # image size

image = caffe.io.load_image('cat.jpg')
transformed_image = transformer.preprocess('data', image)

# copy the image data into the memory allocated for the net
net.blobs['data'].data[...] = transformed_image

### perform classification
output = net.forward()

output_prob = output['prob'][0]  # the output probability vector for the first image in the batch

print('predicted class is:', output_prob.argmax())

labels = np.loadtxt('synset_words.txt', str, delimiter='\\t')
print('output label:', labels[output_prob.argmax()])

# sort top five predictions from softmax output
top_inds = output_prob.argsort()[::-1][:5]  # reverse sort and take five largest items
top = list(zip(output_prob[top_inds], labels[top_inds]))

# for each layer, show the output shape
for layer_name, blob in net.blobs.items():
    print(layer_name + '\\t' + str(blob.data.shape))
for layer_name, param in net.params.items():
    print(layer_name + '\\t' + str(param[0].data.shape), str(param[1].data.shape))

# the parameters are a list of [weights, biases]
filters = net.params['conv1'][0].data.transpose(0, 2, 3, 1)
feat = net.blobs['conv1'].data[0, :36]
hist = np.histogram(net.blobs['fc6'].data[0].flat, bins=100)
shown = transformer.deprocess('data', net.blobs['data'].data[0])

# transform it and copy it into the net
net.blobs['data'].reshape(1, 3, 43, 43)
net.forward_all(data=np.asarray([transformed_image]))
batch = net.blobs['prob'].data.shape
"""


@pytest.mark.usefixtures("caffenet")
def test_the_classification_notebook(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    seen = run(CLASSIFICATION)
    net = cv2.dnn.readNetFromCaffe("deploy.prototxt", "net.caffemodel")
    bgr = cv2.imread("cat.jpg").astype(np.float32)
    resized = caffe.io.resize_image(bgr, (43, 43)).transpose(2, 0, 1)
    net.setInput((resized - np.load("mean.npy").mean((1, 2))[:, None, None])[None].astype(np.float32))
    expected = net.forward().ravel()
    np.testing.assert_allclose(seen["output_prob"], expected, rtol=1e-3)
    assert seen["output"]["prob"].shape == (5, 11)
    assert [probability for probability, _ in seen["top"]] == sorted(seen["output_prob"])[:-6:-1]
    assert seen["top"][0][1] == f"n{expected.argmax():08} class {expected.argmax()}, another name"
    assert (seen["filters"].shape, seen["feat"].shape, seen["batch"]) == ((8, 7, 7, 3), (8, 19, 19), (1, 11))
    np.testing.assert_allclose(seen["shown"], caffe.io.resize_image(seen["image"], (43, 43)), atol=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert "fc6\t(5, 20)" in printed
    assert "conv2\t(12, 4, 3, 3) (12,)" in printed


FULLY_CONVOLUTIONAL = {
    "input_dim: 10\n": "input_dim: 1\n",
    "input_dim: 43\ninput_dim: 43": "input_dim: 75\ninput_dim: 91",
    'name: "fc6" type: INNER_PRODUCT': 'name: "fc6-conv" type: CONVOLUTION',
    "inner_product_param { num_output: 20": "convolution_param { kernel_size: 3 num_output: 20",
    'name: "fc7" type: INNER_PRODUCT': 'name: "fc7-conv" type: CONVOLUTION',
    "inner_product_param { num_output: 11": "convolution_param { kernel_size: 1 num_output: 11",
}

NET_SURGERY = """
import numpy as np
import caffe

# Load the original network and extract the fully connected layers' parameters.
net = caffe.Net('deploy.prototxt',
                'net.caffemodel',
                caffe.TEST)
params = ['fc6', 'fc7']
# fc_params = {name: (weights, biases)}
fc_params = {pr: (net.params[pr][0].data, net.params[pr][1].data) for pr in params}

for fc in params:
    print('{} weights are {} dimensional and biases are {} dimensional'.format(
        fc, fc_params[fc][0].shape, fc_params[fc][1].shape))

# Load the fully convolutional network to transplant the parameters.
net_full_conv = caffe.Net('full_conv.prototxt',
                          'net.caffemodel',
                          caffe.TEST)
params_full_conv = ['fc6-conv', 'fc7-conv']
# conv_params = {name: (weights, biases)}
conv_params = {pr: (net_full_conv.params[pr][0].data, net_full_conv.params[pr][1].data) for pr in params_full_conv}

for conv in params_full_conv:
    print('{} weights are {} dimensional and biases are {} dimensional'.format(
        conv, conv_params[conv][0].shape, conv_params[conv][1].shape))

for pr, pr_conv in zip(params, params_full_conv):
    conv_params[pr_conv][0].flat = fc_params[pr][0].flat  # flat unrolls the arrays
    conv_params[pr_conv][1][...] = fc_params[pr][1]

net_full_conv.save('full_conv.caffemodel')

# load input and configure preprocessing
im = caffe.io.load_image('cat.jpg')
transformer = caffe.io.Transformer({'data': net_full_conv.blobs['data'].data.shape})
transformer.set_mean('data', np.load('mean.npy').mean(1).mean(1))
transformer.set_transpose('data', (2,0,1))
transformer.set_channel_swap('data', (2,1,0))
transformer.set_raw_scale('data', 255.0)
# make classification map by forward and print prediction indices at each location
data = np.asarray([transformer.preprocess('data', im)])
out = net_full_conv.forward_all(data=data)
print(out['prob'][0].argmax(axis=0))

# the filters themselves can be changed, too
conv0 = net_full_conv.blobs['conv1'].data[0, 0].copy()
net_full_conv.params['conv1'][1].data[0] = 1.
net_full_conv.params['conv1'][0].data[1:] *= 2
net_full_conv.forward()
conv0_and_bias = net_full_conv.blobs['conv1'].data[0, 0]
"""


@pytest.mark.usefixtures("caffenet")
def test_the_net_surgery_notebook(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = CAFFENET
    for old, new in FULLY_CONVOLUTIONAL.items():
        assert old in text
        text = text.replace(old, new)
    Path("full_conv.prototxt").write_text(text)
    seen = run(NET_SURGERY)
    printed = capsys.readouterr().out
    assert "fc6 weights are (20, 108) dimensional and biases are (20,) dimensional" in printed
    assert "fc6-conv weights are (20, 12, 3, 3) dimensional and biases are (20,) dimensional" in printed
    # each place of the map is what the net makes of the part of the image that it sees, 8 pixels from the next
    probabilities = seen["out"]["prob"]
    assert probabilities.shape == (1, 11, 5, 7)
    parts = [seen["data"][0, :, y : y + 43, x : x + 43] for y in range(0, 33, 8) for x in range(0, 49, 8)]
    expected = seen["net"].forward_all(data=np.stack(parts))["prob"]
    np.testing.assert_allclose(probabilities[0].reshape(11, -1).T, expected, rtol=1e-3)
    saved = caffe.Net("full_conv.prototxt", "full_conv.caffemodel", caffe.TEST)
    np.testing.assert_allclose(saved.forward(data=seen["data"])["prob"], probabilities, rtol=1e-4)
    before = seen["conv0"]
    assert (before > 0).any()
    np.testing.assert_allclose(seen["conv0_and_bias"][before > 0], before[before > 0] + 1, rtol=1e-4)


LENET = """
import numpy as np
import caffe
from caffe import layers as L, params as P

def lenet(lmdb, batch_size):
    # our version of LeNet: a series of linear and simple nonlinear transformations
    n = caffe.NetSpec()

    n.data, n.label = L.Data(batch_size=batch_size, backend=P.Data.LMDB, source=lmdb,
                             transform_param=dict(scale=1./255), ntop=2)

    n.conv1 = L.Convolution(n.data, kernel_size=5, num_output=20, weight_filler=dict(type='xavier'))
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.conv2 = L.Convolution(n.pool1, kernel_size=5, num_output=50, weight_filler=dict(type='xavier'))
    n.pool2 = L.Pooling(n.conv2, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.fc1 =   L.InnerProduct(n.pool2, num_output=100, weight_filler=dict(type='xavier'))
    n.relu1 = L.ReLU(n.fc1, in_place=True)
    n.score = L.InnerProduct(n.relu1, num_output=10, weight_filler=dict(type='xavier'))
    n.loss =  L.SoftmaxWithLoss(n.score, n.label)

    return n.to_proto()

with open('lenet_auto_train.prototxt', 'w') as f:
    f.write(str(lenet('train_lmdb', 32)))

with open('lenet_auto_test.prototxt', 'w') as f:
    f.write(str(lenet('test_lmdb', 60)))

caffe.set_mode_cpu()
caffe.set_random_seed(0)

### load the solver and create train and test nets
solver = None  # ignore this workaround for lmdb data (can't instantiate two solvers on the same data)
solver = caffe.SGDSolver('lenet_auto_solver.prototxt')

# each output is (batch size, feature dim, spatial dim)
shapes = [(k, v.data.shape) for k, v in solver.net.blobs.items()]
weights = [(k, v[0].data.shape) for k, v in solver.net.params.items()]

first_train = solver.net.forward()  # train net
first_test = solver.test_nets[0].forward()  # test net (there can be more than one)

solver.step(1)
conv1_update = solver.net.params['conv1'][0].diff[:, 0].reshape(4, 5, 5, 5).transpose(0, 2, 1, 3).reshape(4*5, 5*5)

niter = 40
test_interval = 10
# losses will also be stored in the log
train_loss = np.zeros(niter)
test_acc = np.zeros(int(np.ceil(niter / test_interval)))
output = np.zeros((niter, 8, 10))

# the main solver loop
for it in range(niter):
    solver.step(1)  # SGD by Caffe

    # store the train loss
    train_loss[it] = solver.net.blobs['loss'].data

    # store the output on the first test batch
    # (start the forward pass at conv1 to avoid loading new data)
    solver.test_nets[0].forward(start='conv1')
    output[it] = solver.test_nets[0].blobs['score'].data[:8]

    # run a full test every so often
    # (Caffe can also do this for us and write to a log, but we show here
    #  how to do it directly in Python, where more complicated things are easier.)
    if it % test_interval == 0:
        print('Iteration', it, 'testing...')
        correct = 0
        for test_it in range(1):
            solver.test_nets[0].forward()
            correct += sum(solver.test_nets[0].blobs['score'].data.argmax(1)
                           == solver.test_nets[0].blobs['label'].data)
        test_acc[it // test_interval] = correct / 60.
"""

LENET_SOLVER = """
train_net: "lenet_auto_train.prototxt"
test_net: "lenet_auto_test.prototxt"
test_iter: 1
test_interval: 500
base_lr: 0.05
momentum: 0.9
weight_decay: 0.0005
lr_policy: "inv"
gamma: 0.0001
power: 0.75
display: 100
max_iter: 10000
solver_mode: CPU
"""


def link_lmdbs(shared: Path) -> None:
    golden = shared / "caffe_golden"
    if not golden.is_dir():
        pytest.skip(f"no LMDB at {golden}")
    for name in ("train_lmdb", "test_lmdb"):
        os.symlink(golden / name, name)


def test_the_lenet_notebook(run: Run, shared: Path) -> None:
    link_lmdbs(shared)
    Path("lenet_auto_solver.prototxt").write_text(LENET_SOLVER)
    seen = run(LENET)
    assert seen["shapes"] == [
        ("data", (32, 1, 20, 20)),
        ("label", (32,)),
        ("conv1", (32, 20, 16, 16)),
        ("pool1", (32, 20, 8, 8)),
        ("conv2", (32, 50, 4, 4)),
        ("pool2", (32, 50, 2, 2)),
        ("fc1", (32, 100)),
        ("score", (32, 10)),
        ("loss", ()),
    ]
    assert dict(seen["weights"])["conv2"] == (50, 20, 5, 5)
    assert set(seen["first_train"]) == set(seen["first_test"]) == {"loss"}
    assert 1.5 < seen["first_train"]["loss"] < 3.5
    assert np.abs(seen["conv1_update"]).max() > 0
    assert seen["train_loss"][-5:].mean() < 0.6 * seen["train_loss"][:5].mean()
    assert seen["solver"].iter == 41
    # the test net has the trained weights: OpenCV computes the same scores with them
    seen["solver"].net.save("lenet.caffemodel")
    deploy = text_format.Parse(Path("lenet_auto_test.prototxt").read_text(), caffe_pb2.NetParameter())
    del deploy.layer[-1]
    deploy.layer[0].CopyFrom(caffe_pb2.LayerParameter(name="data", type="Input", top=["data"]))
    deploy.layer[0].input_param.shape.add(dim=[60, 1, 20, 20])
    Path("deploy.prototxt").write_text(str(deploy))
    images, labels = caffe.io.DatumReader("test_lmdb").read_all() or pytest.fail("images of several sizes")
    net = cv2.dnn.readNetFromCaffe("deploy.prototxt", "lenet.caffemodel")
    net.setInput(images.astype(np.float32) / 255)
    scores = net.forward()
    np.testing.assert_allclose(seen["output"][-1], scores[:8], rtol=1e-3, atol=1e-3)
    final = seen["solver"].test_nets[0].forward()
    assert set(final) == {"loss"}
    shifted = scores - scores.max(1, keepdims=True)
    by_hand = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(60), labels]
    assert final["loss"] == pytest.approx(by_hand.mean(), rel=1e-3)


FINE_TUNING = """
import numpy as np
import os
import tempfile
import caffe
from caffe import layers as L
from caffe import params as P
from caffe.proto import caffe_pb2

weight_param = dict(lr_mult=1, decay_mult=1)
bias_param   = dict(lr_mult=2, decay_mult=0)
learned_param = [weight_param, bias_param]

frozen_param = [dict(lr_mult=0)] * 2

def conv_relu(bottom, ks, nout, stride=1, pad=0, group=1,
              param=learned_param,
              weight_filler=dict(type='gaussian', std=0.01),
              bias_filler=dict(type='constant', value=0.1)):
    conv = L.Convolution(bottom, kernel_size=ks, stride=stride,
                         num_output=nout, pad=pad, group=group,
                         param=param, weight_filler=weight_filler,
                         bias_filler=bias_filler)
    return conv, L.ReLU(conv, in_place=True)

def fc_relu(bottom, nout, param=learned_param,
            weight_filler=dict(type='gaussian', std=0.005),
            bias_filler=dict(type='constant', value=0.1)):
    fc = L.InnerProduct(bottom, num_output=nout, param=param,
                        weight_filler=weight_filler,
                        bias_filler=bias_filler)
    return fc, L.ReLU(fc, in_place=True)

def max_pool(bottom, ks, stride=1):
    return L.Pooling(bottom, pool=P.Pooling.MAX, kernel_size=ks, stride=stride)

def caffenet(data, label=None, train=True, num_classes=11,
             classifier_name='fc7', learn_all=False):
    \"\"\"Returns a NetSpec specifying CaffeNet, following the original proto text
       specification (./models/bvlc_reference_caffenet/train_val.prototxt).\"\"\"
    n = caffe.NetSpec()
    n.data = data
    param = learned_param if learn_all else frozen_param
    n.conv1, n.relu1 = conv_relu(n.data, 7, 8, stride=2, param=param)
    n.pool1 = max_pool(n.conv1, 3, stride=2)
    n.norm1 = L.LRN(n.pool1, local_size=5, alpha=1e-4, beta=0.75)
    n.conv2, n.relu2 = conv_relu(n.norm1, 3, 12, group=2, param=param)
    n.pool2 = max_pool(n.relu2, 3, stride=2)
    n.fc6, n.relu6 = fc_relu(n.pool2, 20, param=param)
    if train:
        n.drop6 = fc7input = L.Dropout(n.relu6, in_place=True)
    else:
        fc7input = n.relu6
    # always learn fc7 (param=learned_param)
    fc7 = L.InnerProduct(fc7input, num_output=num_classes, param=learned_param)
    # give fc7 the name specified by argument `classifier_name`
    n.__setattr__(classifier_name, fc7)
    if not train:
        n.probs = L.Softmax(fc7)
    if label is not None:
        n.label = label
        n.loss = L.SoftmaxWithLoss(fc7, n.label)
        n.acc = L.Accuracy(fc7, n.label)
    # write the net to a temporary file and return its filename
    with tempfile.NamedTemporaryFile(mode='w', delete=False, dir='.') as f:
        f.write(str(n.to_proto()))
        return f.name

def style_net(train=True, learn_all=False, subset=None):
    if subset is None:
        subset = 'train' if train else 'test'
    source = '%s.txt' % subset
    transform_param = dict(mirror=train, crop_size=43, mean_value=[104, 117, 123])
    style_data, style_label = L.ImageData(
        transform_param=transform_param, source=source,
        batch_size=10, new_height=48, new_width=48, ntop=2)
    return caffenet(data=style_data, label=style_label, train=train,
                    num_classes=2,
                    classifier_name='fc8_flickr',
                    learn_all=learn_all)

def solver(train_net_path, test_net_path=None, base_lr=0.001):
    s = caffe_pb2.SolverParameter()

    # Specify locations of the train and (maybe) test networks.
    s.train_net = train_net_path
    if test_net_path is not None:
        s.test_net.append(test_net_path)
        s.test_interval = 1000  # Test after every 1000 training iterations.
        s.test_iter.append(100) # Test on 100 batches each time we test.

    s.iter_size = 1
    s.max_iter = 100000     # # of times to update the net (training iterations)

    # Solve using the stochastic gradient descent (SGD) algorithm.
    s.type = 'SGD'
    s.base_lr = base_lr
    s.lr_policy = 'step'
    s.gamma = 0.1
    s.stepsize = 20000
    s.momentum = 0.9
    s.weight_decay = 5e-4
    s.display = 1000
    s.snapshot = 10000
    s.snapshot_prefix = 'finetune_flickr_style'
    s.solver_mode = caffe_pb2.SolverParameter.CPU

    # Write the solver to a temporary file and return its filename.
    with tempfile.NamedTemporaryFile(mode='w', delete=False, dir='.') as f:
        f.write(str(s))
        return f.name

def run_solvers(niter, solvers, disp_interval=10):
    \"\"\"Run solvers for niter iterations,
       returning the loss and accuracy recorded each iteration.
       `solvers` is a list of (name, solver) tuples.\"\"\"
    blobs = ('loss', 'acc')
    loss, acc = ({name: np.zeros(niter) for name, _ in solvers}
                 for _ in blobs)
    for it in range(niter):
        for name, s in solvers:
            s.step(1)  # run a single SGD step in Caffe
            loss[name][it], acc[name][it] = (s.net.blobs[b].data.copy()
                                             for b in blobs)
        if it % disp_interval == 0 or it + 1 == niter:
            loss_disp = '; '.join('%s: loss=%.3f, acc=%2d%%' %
                                  (n, loss[n][it], np.round(100*acc[n][it]))
                                  for n, _ in solvers)
            print('%3d) %s' % (it, loss_disp))
    # Save the learned weights from both nets.
    weight_dir = tempfile.mkdtemp(dir='.')
    weights = {}
    for name, s in solvers:
        filename = 'weights.%s.caffemodel' % name
        weights[name] = os.path.join(weight_dir, filename)
        s.net.save(weights[name])
    return loss, acc, weights

def eval_style_net(weights, test_iters=3):
    test_net = caffe.Net(style_net(train=False), weights, caffe.TEST)
    accuracy = 0
    for it in range(test_iters):
        accuracy += test_net.forward()['acc']
    accuracy /= test_iters
    return test_net, accuracy

caffe.set_random_seed(5)
weights = 'net.caffemodel'
niter = 40

# Reset style_solver as before.
style_solver_filename = solver(style_net(train=True), base_lr=0.004)
style_solver = caffe.get_solver(style_solver_filename)
style_solver.net.copy_from(weights)

# For reference, we also create a solver that isn't initialized from
# the pretrained ImageNet weights.
scratch_style_solver_filename = solver(style_net(train=True, learn_all=True), base_lr=0.004)
scratch_style_solver = caffe.get_solver(scratch_style_solver_filename)

print('Running solvers for %d iterations...' % niter)
solvers = [('pretrained', style_solver),
           ('scratch', scratch_style_solver)]
loss, acc, weights = run_solvers(niter, solvers)
print('Done.')

test_net, accuracy = eval_style_net(weights['pretrained'])
"""


@pytest.mark.usefixtures("caffenet")
def test_the_fine_tuning_notebook(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(4)
    for subset, count in (("train", 40), ("test", 30)):
        lines = []
        for i in range(count):  # bright or dark noise
            image = random.integers(0, 100, (60, 50, 3)) + 140 * (i % 2)
            cv2.imwrite(f"{subset}{i}.png", image.astype(np.uint8))
            lines.append(f"{subset}{i}.png {i % 2}\n")
        Path(f"{subset}.txt").write_text("".join(lines))
    seen = run(FINE_TUNING)
    assert capsys.readouterr().out.count("pretrained: loss=") == 5
    pretrained, tuned = (
        caffe.Net("deploy.prototxt", w, caffe.TEST) for w in ("net.caffemodel", seen["weights"]["pretrained"])
    )
    for layer in ("conv1", "conv2", "fc6"):  # frozen, so still the weights that were copied
        for old, new in zip(pretrained.params[layer], tuned.params[layer], strict=True):
            np.testing.assert_array_equal(old.data, new.data)
    assert seen["style_solver"].net.params["fc8_flickr"][0].data.any()
    assert seen["loss"]["pretrained"][-5:].mean() < 0.5 * seen["loss"]["pretrained"][0]
    assert seen["accuracy"] > 0.9
    assert seen["test_net"].blobs["probs"].data.shape == (10, 2)
    changed = seen["scratch_style_solver"].net.params["conv1"][0].diff
    assert np.abs(changed).max() > 0


LOGISTIC_REGRESSION = """
import numpy as np
import os
import h5py
import caffe
from caffe import layers as L
from caffe import params as P

# Write out the data to HDF5 files in a temp directory.
# This file is assumed to be caffe_root/examples/hdf5_classification.ipynb
dirname = os.path.abspath('./hdf5_classification_data')
if not os.path.exists(dirname):
    os.makedirs(dirname)

train_filename = os.path.join(dirname, 'train.h5')
test_filename = os.path.join(dirname, 'test.h5')

rng = np.random.RandomState(0)
y = rng.randint(0, 2, 400)
X = (rng.randn(400, 4) + 2 * y[:, np.newaxis] * [1, -1, 0, 0.5]).astype(np.float32)
X, Xt, y, yt = X[:300], X[300:], y[:300], y[300:]

# HDF5DataLayer source should be a file containing a list of HDF5 filenames.
# To show this off, we'll list the same data file twice.
with h5py.File(train_filename, 'w') as f:
    f['data'] = X
    f['label'] = y.astype(np.float32)
with open(os.path.join(dirname, 'train.txt'), 'w') as f:
    f.write(train_filename + '\\n')
    f.write(train_filename + '\\n')

# HDF5 is pretty efficient, but can be further compressed.
comp_kwargs = {'compression': 'gzip', 'compression_opts': 1}
with h5py.File(test_filename, 'w') as f:
    f.create_dataset('data', data=Xt, **comp_kwargs)
    f.create_dataset('label', data=yt.astype(np.float32), **comp_kwargs)
with open(os.path.join(dirname, 'test.txt'), 'w') as f:
    f.write(test_filename + '\\n')

def logreg(hdf5, batch_size):
    # logistic regression: data, matrix multiplication, and 2-class softmax loss
    n = caffe.NetSpec()
    n.data, n.label = L.HDF5Data(batch_size=batch_size, source=hdf5, ntop=2)
    n.ip1 = L.InnerProduct(n.data, num_output=2, weight_filler=dict(type='xavier'))
    n.accuracy = L.Accuracy(n.ip1, n.label)
    n.loss = L.SoftmaxWithLoss(n.ip1, n.label)
    return n.to_proto()

train_net_path = 'logreg_auto_train.prototxt'
with open(train_net_path, 'w') as f:
    f.write(str(logreg('hdf5_classification_data/train.txt', 10)))

test_net_path = 'logreg_auto_test.prototxt'
with open(test_net_path, 'w') as f:
    f.write(str(logreg('hdf5_classification_data/test.txt', 10)))

from caffe.proto import caffe_pb2

def solver(train_net_path, test_net_path):
    s = caffe_pb2.SolverParameter()
    s.train_net = train_net_path
    s.test_net.append(test_net_path)
    s.test_interval = 100
    s.test_iter.append(10)
    s.max_iter = 300
    s.base_lr = 0.01
    s.lr_policy = 'step'
    s.gamma = 0.1
    s.stepsize = 5000
    s.momentum = 0.9
    s.weight_decay = 5e-4
    s.display = 100
    s.snapshot = 10000
    s.snapshot_prefix = 'train'
    s.solver_mode = caffe_pb2.SolverParameter.CPU
    return s

solver_path = 'logreg_solver.prototxt'
with open(solver_path, 'w') as f:
    f.write(str(solver(train_net_path, test_net_path)))

caffe.set_mode_cpu()
solver = caffe.get_solver(solver_path)
solver.solve()

accuracy = 0
batch_size = solver.test_nets[0].blobs['data'].num
test_iters = int(len(Xt) / batch_size)
for i in range(test_iters):
    solver.test_nets[0].forward()
    accuracy += solver.test_nets[0].blobs['accuracy'].data
accuracy /= test_iters

print("Accuracy: {:.3f}".format(accuracy))
"""


def test_the_logistic_regression_notebook(run: Run) -> None:
    seen = run(LOGISTIC_REGRESSION)
    with h5py.File("hdf5_classification_data/test.h5") as file:
        data, label = file["data"][:], file["label"][:]
    weight, bias = (blob.data for blob in seen["solver"].net.params["ip1"])
    by_hand = ((data @ weight.T + bias).argmax(1) == label).mean()
    assert seen["accuracy"] == pytest.approx(by_hand, abs=1e-6)
    assert by_hand > 0.85
    assert Path("train_iter_300.caffemodel").is_file()  # what `solve` leaves behind at its end
    assert Path("train_iter_300.solverstate").is_file()


WRITE_LMDB = """
import numpy as np
import lmdb
import caffe

N = 20

# Let's pretend this is interesting data
X = np.random.RandomState(2).randint(0, 256, (N, 3, 8, 6)).astype(np.uint8)
y = np.arange(N, dtype=np.int64) % 7

# We need to prepare the database for the size. We'll set it 10 times
# greater than what we theoretically need.
map_size = X.nbytes * 10 + 1000000

env = lmdb.open('mylmdb', map_size=map_size)

with env.begin(write=True) as txn:
    # txn is a Transaction object
    for i in range(N):
        datum = caffe.proto.caffe_pb2.Datum()
        datum.channels = X.shape[1]
        datum.height = X.shape[2]
        datum.width = X.shape[3]
        datum.data = X[i].tobytes()  # or .tostring() if numpy < 1.9
        datum.label = int(y[i])
        str_id = '{:08}'.format(i)

        # The encode is only essential in Python 3
        txn.put(str_id.encode('ascii'), datum.SerializeToString())
env.close()

env = lmdb.open('mylmdb', readonly=True)
with env.begin() as txn:
    raw_datum = txn.get(b'00000003')
datum = caffe.proto.caffe_pb2.Datum()
datum.ParseFromString(raw_datum)
flat_x = np.frombuffer(datum.data, dtype=np.uint8)
x = flat_x.reshape(datum.channels, datum.height, datum.width)
label = datum.label

read = []
with env.begin() as txn:
    cursor = txn.cursor()
    for key, value in cursor:
        datum.ParseFromString(value)
        read.append(caffe.io.datum_to_array(datum).transpose(1, 2, 0))
env.close()

# compute the mean image, and save it for the data layer
mean = np.mean(X.astype(np.float64), axis=0)
blob = caffe.io.array_to_blobproto(mean.reshape((1,) + mean.shape))
with open('mean.binaryproto', 'wb') as f:
    f.write(blob.SerializeToString())

# and what it was once converted to by everyone
blob = caffe.proto.caffe_pb2.BlobProto()
data = open('mean.binaryproto', 'rb').read()
blob.ParseFromString(data)
arr = np.array(caffe.io.blobproto_to_array(blob))
np.save('mean.npy', arr[0])

from caffe import layers as L, params as P
n = caffe.NetSpec()
n.data, n.label = L.Data(source='mylmdb', backend=P.Data.LMDB, batch_size=N, ntop=2,
                         transform_param=dict(mean_file='mean.binaryproto', scale=0.5))
with open('data.prototxt', 'w') as f:
    f.write(str(n.to_proto()))
net = caffe.Net('data.prototxt', caffe.TEST)
net.forward()
"""


def test_a_script_that_writes_an_lmdb_and_a_mean(run: Run) -> None:
    seen = run(WRITE_LMDB)
    np.testing.assert_array_equal(seen["x"], seen["X"][3])
    assert seen["label"] == 3
    np.testing.assert_array_equal(seen["read"], seen["X"].transpose(0, 2, 3, 1))
    mean = np.load("mean.npy")
    np.testing.assert_allclose(mean, seen["X"].mean(0), rtol=1e-6)
    np.testing.assert_allclose(seen["net"].blobs["data"].data, (seen["X"] - seen["X"].mean(0)) / 2, atol=1e-4)
    np.testing.assert_array_equal(seen["net"].blobs["label"].data, seen["y"])


DREAM = """
import numpy as np
from google.protobuf import text_format
from small_nets import input_layer, net_of
import caffe

# Patching model to be able to compute gradients.
# Note that you can also manually add "force_backward: true" line to "deploy.prototxt".
model = caffe.io.caffe_pb2.NetParameter()
text_format.Merge(open('deploy.prototxt').read(), model)
model.force_backward = True
open('tmp.prototxt', 'w').write(str(model))

net = caffe.Classifier('tmp.prototxt', 'net.caffemodel',
                       mean = np.float32([104.0, 116.0, 122.0]), # ImageNet mean, training set dependent
                       channel_swap = (2,1,0)) # the reference model has channels in BGR order instead of RGB

# a couple of utility functions for converting to and from Caffe's input image layout
def preprocess(net, img):
    return np.float32(np.rollaxis(img, 2)[::-1]) - net.transformer.mean['data']
def deprocess(net, img):
    return np.dstack((img + net.transformer.mean['data'])[::-1])

def objective_L2(dst):
    dst.diff[:] = dst.data

def make_step(net, step_size=1.5, end='conv2', jitter=4, clip=True, objective=objective_L2):
    '''Basic gradient ascent step.'''

    src = net.blobs['data'] # input image is stored in Net's 'data' blob
    dst = net.blobs[end]

    ox, oy = np.random.randint(-jitter, jitter+1, 2)
    src.data[0] = np.roll(np.roll(src.data[0], ox, -1), oy, -2) # apply jitter shift

    net.forward(end=end)
    objective(dst)  # specify the optimization objective
    net.backward(start=end)
    g = src.diff[0]
    # apply normalized ascent step to the input image
    src.data[:] += step_size/np.abs(g).mean() * g

    src.data[0] = np.roll(np.roll(src.data[0], -ox, -1), -oy, -2) # unshift image

    if clip:
        bias = net.transformer.mean['data']
        src.data[:] = np.clip(src.data, -bias, 255-bias)

np.random.seed(0)
img = np.float32(caffe.io.load_image('cat.jpg') * 255)
base = preprocess(net, img)
src = net.blobs['data']
h, w = base.shape[-2:]
src.reshape(1,3,h,w) # resize the network's input image size
src.data[0] = base
strength = []
for i in range(8):
    make_step(net)
    strength.append((net.blobs['conv2'].data ** 2).sum())
vis = deprocess(net, src.data[0])
"""


@pytest.mark.usefixtures("caffenet")
def test_the_deep_dream_notebook(run: Run) -> None:
    seen = run(DREAM)
    assert seen["vis"].shape == seen["img"].shape == (90, 120, 3)
    assert np.abs(seen["vis"] - seen["img"]).max() > 1
    assert seen["strength"][-1] > 1.1 * seen["strength"][0]
    assert seen["vis"].min() >= 0
    assert seen["vis"].max() <= 255.01
    # its gradient is the sum of squares' (halved): how that changes along it
    net, dst = seen["net"], seen["net"].blobs["conv2"]
    before = np.array(net.blobs["data"].data)
    net.forward(end="conv2")
    dst.diff[:] = dst.data
    gradient = np.array(net.backward(start="conv2")["data"])
    direction = gradient / np.linalg.norm(gradient)
    values = []
    for step in (-0.05, 0.05):
        net.blobs["data"].data[...] = before + step * direction
        net.forward(end="conv2")
        values.append((dst.data.astype(np.float64) ** 2).sum() / 2)
    assert (values[1] - values[0]) / 0.1 == pytest.approx(np.linalg.norm(gradient), rel=0.02)


def test_a_pool_of_processes_with_the_net_of_their_parent(tmp_path: Path) -> None:
    """Whose threads they do not have. In a process of its own, since it is the first net of it that starts them."""
    script = """
import multiprocessing
import caffe, numpy as np, torch

net = caffe.Net('net.prototxt', caffe.TEST)

def score(value):
    net.blobs['data'].data[...] = value
    return net.forward()['prob'][0]

if __name__ == '__main__':
    torch.set_num_threads(2)
    expected = [score(value) for value in range(4)]
    with multiprocessing.get_context('fork').Pool(2) as pool:
        np.testing.assert_allclose(pool.map(score, range(4)), expected, rtol=1e-5)
"""
    layers = [
        'name: "data" type: "Input" top: "data" input_param { shape { dim: 8 dim: 8 dim: 32 dim: 32 } }',
        'name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 16 kernel_size: 3 '
        'weight_filler { type: "xavier" } }',
        'name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param { num_output: 5 '
        'weight_filler { type: "xavier" } }',
        'name: "prob" type: "Softmax" bottom: "ip" top: "prob"',
    ]
    (tmp_path / "net.prototxt").write_text("\n".join(f"layer {{ {layer} }}" for layer in layers))
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(caffe.__file__).parents[1]), "OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, check=True, timeout=120, capture_output=True
    )


def test_names_that_scripts_import() -> None:
    from caffe import NetSpec, layers, params, to_proto  # noqa: F401
    from caffe.io import Transformer, load_image  # noqa: F401
    from caffe.proto import caffe_pb2 as messages

    assert messages is caffe_pb2 is caffe.proto.caffe_pb2
    assert caffe.__version__ == "1.0.0"
    assert "Convolution" in list(caffe.layer_type_list())
    from caffe.pycaffe import NCCL, Net, SGDSolver, Timer

    assert (NCCL, Net, SGDSolver, Timer) == (caffe.NCCL, caffe.Net, caffe.SGDSolver, caffe.Timer)
    from caffe._caffe import BlobVec, Layer, RawBlobVec, layer_type_list  # noqa: F401

    assert (Layer, layer_type_list) == (caffe.Layer, caffe.layer_type_list)
    product = 'type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 }'
    net = net_of(f'{input_layer("x", 1, 2)} layer {{ name: "ip" {product} }}')
    assert type(net.params["ip"]) is caffe._caffe.BlobVec
    assert type(net) is caffe.pycaffe.Net is caffe._caffe.Net
    for name in ("Classifier", "Detector", "SGDSolver", "AdamSolver", "get_solver", "set_device", "solver_count"):
        assert callable(getattr(caffe, name))
