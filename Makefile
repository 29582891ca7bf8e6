# The stages, from a CSV of faces to a trained network and its predictions. `make help` lists targets and variables.
#
# Each stage names its inputs and outputs, so that what is up to date is not made again. A stage is also made again
# when a variable that decides its output has changed: the last value stands in a file .NAME beside the output.

# ---- variables ------------------------------------------------------------------------------------------------------
#: data set: data/DATASET.csv is its source, data/DATASET/ its folder (fer2013 where data/fer2013.csv is, else sample)
DATASET ?= $(if $(wildcard data/fer2013.csv),fer2013,sample)
#: FER2013 CSV (fer2013.csv, icml_face_data.csv), Kaggle's fer2013.tar.gz, or a folder train/EMOTION, test/EMOTION
CSV ?= data/$(DATASET).csv
#: 1: leave bad rows of the CSV out and list them in the manifest, instead of stopping
SKIP_BAD ?=
#: mtcnn: detect and align the faces; none: leave them as they are
ALIGN ?= mtcnn
#: network to train: a folder of prototxt/
MODEL ?= face_emotion_net
#: epochs to train; rescales max_iter and the learning rate's steps (default: the solver's 150; 30 on the sample)
EPOCHS ?= $(if $(filter sample,$(DATASET)),30)
#: train: choose the epoch on the validation split; train+val: train on both, without a choice
TRAIN_ON ?= train
#: random seed: the order of the LMDBs, initial weights, crops, mirroring, dropout
SEED ?= 1
#: auto, fp32, bf16 or fp16: in what convolutions and inner products are computed (default: as the solver says, auto)
PRECISION ?=
#: auto, cpu, cuda or cuda:N
DEVICE ?= auto
#: threads of the data stages (default: one a core)
WORKERS ?=
#: a photo, a folder of photos, or a quoted pattern, for `make predict`
IMG ?= images/astronaut.png
#: detect: find and align the faces of a photo; none: the image is a cropped face
FACE ?= detect
#: 1: `make predict` prints JSON
JSON ?=
#: shipped: `make predict` uses the weights that come with the project; run: those that `make train` made
FROM ?= shipped
#: a Caffe log for `make plot`; also one of a training that still runs (default: the run's)
LOG ?=
#: options for `make bench`, e.g. --quick
BENCH ?=

# ---- names ----------------------------------------------------------------------------------------------------------
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := all

PYTHON := .venv/bin/python
READY := .venv/.ready
TESTED := .venv/.ready-dev
escape = $(subst $() $(),\ ,$(1))

D := data/$(DATASET)
ifeq ($(ALIGN),mtcnn)
W := $(D)
FACES := $(D)/aligned
else ifeq ($(ALIGN),none)
W := $(D)/unaligned
FACES := $(D)/images
else
$(error ALIGN is $(ALIGN); expected mtcnn or none)
endif
ifeq ($(wildcard prototxt/$(MODEL)/solver.prototxt),)
$(error MODEL is $(MODEL); expected one of $(patsubst prototxt/%/solver.prototxt,%,$(wildcard prototxt/*/solver.prototxt)))
endif
RUN := $(W)/runs/$(MODEL)$(if $(filter train+val,$(TRAIN_ON)),_train+val)
NET := prototxt/$(MODEL)
WEIGHTS := $(RUN)/$(MODEL).caffemodel
PLOTS := $(RUN)/loss.png $(RUN)/accuracy.png $(RUN)/metrics.csv
EVALUATION := $(RUN)/evaluation/evaluation.json
PREDICTION := $(RUN)/predictions/.done

# $(call stale,NAME,VALUES): FORCE where the file NAME does not hold VALUES
stale = $(if $(filter-out x$(strip $(2)),x$(strip $(shell cat $(1) 2>/dev/null))),FORCE)
# values are joined to one word, since they may hold spaces
joined = $(subst $() $(),_,$(strip $(1)))
SET_EXTRACT := $(call joined,CSV=$(CSV) SKIP_BAD=$(SKIP_BAD))
SET_LMDB := $(call joined,SEED=$(SEED))
SET_TRAIN := $(call joined,EPOCHS=$(EPOCHS) SEED=$(SEED) TRAIN_ON=$(TRAIN_ON) PRECISION=$(PRECISION))
workers = $(if $(WORKERS),--workers $(WORKERS))

# ---- targets --------------------------------------------------------------------------------------------------------
.PHONY: all env data extract align lmdb mean describe train plot evaluate predict test lint bench clean help FORCE
FORCE:

all: $(WEIGHTS) $(PLOTS) $(EVALUATION) $(D)/report.md $(PREDICTION) ## the whole pipeline: data, train, plot, evaluate, predict
	@echo "all up to date: $(RUN), $(D)/report.md"

env: $(READY) ## the Python environment in .venv
data: $(W)/mean.binaryproto $(D)/report.md ## extract, align, lmdb, mean, describe
extract: $(D)/images/manifest.json ## CSV to images by split and emotion
align: $(FACES)/manifest.json ## detected and aligned faces (ALIGN=none: the images as they are)
lmdb: $(W)/lmdb/manifest.json ## LMDBs of Caffe's Datum: train, val, test
mean: $(W)/mean.binaryproto ## mean image of the training split
describe: $(D)/report.md ## what the data is like: counts, montages, duplicates
train: $(WEIGHTS) ## train MODEL; stopped, it goes on from its last snapshot
evaluate: $(EVALUATION) ## accuracy, confusion matrix, precision, recall and F1 on PublicTest and PrivateTest
ifeq ($(LOG),)
plot: $(PLOTS) ## loss.png and accuracy.png of the run, or of LOG
else
plot: $(READY)
	$(PYTHON) -m train.plot "$(LOG)"
endif

# the environment: torch first, so that no other package brings another build of it
$(READY): pyproject.toml constraints.txt
	$(if $(wildcard $(PYTHON)),,python3 -m venv .venv)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(TESTED): $(READY)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

data/sample.csv: preprocessing/sample.py | $(READY)
	@echo "There is no data/fer2013.csv: put Kaggle's there (competition challenges-in-representation-learning-facial-"
	@echo "expression-recognition-challenge, fer2013.csv), and make uses it. Until then: faces that the project draws."
	$(PYTHON) -m preprocessing.sample $@

data/fer2013.csv:
	@echo "error: $@ is not there. It is the file fer2013.csv of Kaggle's competition" >&2
	@echo "challenges-in-representation-learning-facial-expression-recognition-challenge; or name it: make CSV=FILE" >&2
	@exit 1

$(D)/images/manifest.json: $(call escape,$(CSV)) $(call stale,$(D)/.extract,$(SET_EXTRACT)) | $(READY)
	$(PYTHON) -m preprocessing.extract "$(CSV)" $(D)/images $(if $(filter 1,$(SKIP_BAD)),--skip-bad) $(workers)
	@echo '$(SET_EXTRACT)' > $(D)/.extract

$(D)/aligned/manifest.json: $(D)/images/manifest.json | $(READY)
	$(PYTHON) -m preprocessing.align $(D)/images $(D)/aligned --device $(DEVICE) $(workers)

$(W)/lmdb/manifest.json: $(FACES)/manifest.json $(call stale,$(W)/.lmdb,$(SET_LMDB)) | $(READY)
	$(PYTHON) -m preprocessing.lmdb $(FACES) $(W)/lmdb --seed $(SEED) $(workers)
	@echo '$(SET_LMDB)' > $(W)/.lmdb

$(W)/mean.binaryproto: $(W)/lmdb/manifest.json | $(READY)
	$(PYTHON) -m preprocessing.mean $(W)/lmdb/train_lmdb $@

$(D)/report.md: $(D)/images/manifest.json $(FACES)/manifest.json | $(READY)
	$(PYTHON) -m preprocessing.report $(D)/images $(if $(filter none,$(ALIGN)),-,$(FACES)) $@

$(WEIGHTS): $(W)/lmdb/manifest.json $(W)/mean.binaryproto $(NET)/solver.prototxt $(NET)/train_val.prototxt \
		$(NET)/deploy.prototxt $(call stale,$(RUN)/.train,$(SET_TRAIN)) | $(READY)
	$(PYTHON) -m train $(NET) --train $(W)/lmdb/train_lmdb --val $(W)/lmdb/val_lmdb --mean $(W)/mean.binaryproto \
		--output $(RUN) --seed $(SEED) --device $(DEVICE) --train-on $(TRAIN_ON) \
		$(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(PRECISION),--precision $(PRECISION))
	@echo '$(SET_TRAIN)' > $(RUN)/.train

ifeq ($(LOG),)
$(RUN)/metrics.csv: $(WEIGHTS) | $(READY)
	$(PYTHON) -m train.plot $(RUN)/train.log --iterations-per-epoch test
$(RUN)/loss.png $(RUN)/accuracy.png: $(RUN)/metrics.csv ;
endif

$(EVALUATION): $(WEIGHTS) | $(READY)
	$(PYTHON) -m train.evaluate $(RUN)/deploy.prototxt $(WEIGHTS) --mean $(RUN)/mean.binaryproto \
		--lmdb val=$(W)/lmdb/val_lmdb --lmdb test=$(W)/lmdb/test_lmdb --exclude-duplicates-of $(W)/lmdb/train_lmdb \
		--mirror --output $(RUN)/evaluation --device $(DEVICE)

# what `make` shows at the end: the new network on a photo
$(PREDICTION): $(WEIGHTS) images/astronaut.png | $(READY)
	$(PYTHON) -m predict images/astronaut.png --deploy $(RUN)/deploy.prototxt --weights $(WEIGHTS) \
		--mean $(RUN)/mean.binaryproto --output $(RUN)/predictions --device $(DEVICE)
	@touch $@

predict: $(READY) $(if $(filter run,$(FROM)),$(WEIGHTS)) ## the emotions in IMG: a photo, a folder, a quoted pattern
	$(if $(filter 1,$(JSON)),@)$(PYTHON) -m predict "$(IMG)" --face $(FACE) --device $(DEVICE) \
		$(if $(filter run,$(FROM)),--deploy $(RUN)/deploy.prototxt --weights $(WEIGHTS) --mean $(RUN)/mean.binaryproto,--model $(MODEL)) \
		$(if $(filter 1,$(JSON)),--json)

test: $(TESTED) ## the test suite
	$(PYTHON) -m pytest

lint: $(TESTED) ## ruff (format and rules) and mypy
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

bench: $(READY) ## seconds and rates of every stage, of training and of prediction, beside peers
	$(PYTHON) bench.py $(BENCH)

clean: ## remove data/DATASET (the CSV stays)
	rm -rf $(D)

help: ## this list
	@echo "Targets:"
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | awk -F'\t' '{printf "  %-10s %s\n", $$1, $$2}'
	@echo "Variables (make VARIABLE=VALUE):"
	@awk '/^#: /{sub(/^#: /,""); text=text (text?" ":"") $$0; next} /^[A-Z_]+ \?=/{printf "  %-10s %s\n", $$1, text; text=""}' Makefile
