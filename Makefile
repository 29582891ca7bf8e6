# The stages, from a CSV of faces to a trained network and its predictions. `make help` lists targets and variables.
#
# Each stage names its inputs and outputs, so that what is up to date is not made again. A stage is also made again
# when a variable that decides its output has changed: the last value stands in a file .NAME beside the output.

# ---- variables ------------------------------------------------------------------------------------------------------
#: data set: data/DATASET.csv is its source, data/DATASET/ its folder (default: fer2013 where data/fer2013.csv is there, else sample)
DATASET ?= $(if $(wildcard data/fer2013.csv),fer2013,sample)
#: the source: FER2013's CSV (fer2013.csv, icml_face_data.csv) or fer2013.tar.gz, CK+'s ckextended.csv, or the folder of a data set (default: data/DATASET.csv)
CSV ?= data/$(DATASET).csv
#: what the source is: fer2013, ckplus, rafdb, affectnet, folder (train/EMOTION/*, test/EMOTION/*, or EMOTION/*); default: DATASET if it is one of them, else folder where CSV is one, else fer2013
LAYOUT ?= $(or $(filter ckplus rafdb affectnet folder,$(DATASET)),$(if $(shell test -d $(call quoted,$(CSV)) && echo yes),folder,fer2013))
#: faces of contempt: drop leaves them out, keep makes them an eighth class (default: drop)
CONTEMPT ?= drop
#: CK+: how many of a sequence's last frames carry its label (default: 3)
FRAMES ?=
#: CK+: 1 takes the first frame of each labelled sequence as neutral
NEUTRAL ?=
#: CK+: the fold, 1 to 10, that is the test set; the next one validates; LMDBs, mean and runs lie in foldN/ (default: 1)
FOLD ?= $(if $(FOLDED),1)
#: LAYOUT=folder: names of one's own for the classes, in the order of the labels, in quotes: CLASSES="bored confused engaged"; folders may then be called 0, 1, 2 too
CLASSES ?=
#: 1: leave bad rows or files of the source out and list them in the manifest, instead of stopping
SKIP_BAD ?=
#: mtcnn: detect and align the faces; none: leave them as they are; both: each face both ways, for a MODEL that sees it so (default: both for such a MODEL, else mtcnn)
ALIGN ?= $(if $(call pair,$(if $(WEIGHTS),$(GIVEN),$(NET))),both,mtcnn)
#: FER+'s fer2013new.csv: labels by ten raters' votes, the majority's, and for SOLVER=distill or mixed their shares as soft labels; LMDBs, mean and runs then lie in ferplus/
FERPLUS ?=
#: network to train, a folder of prototxt/ (default: face_emotion_net); for predict, features and explain a trained one that ships (default: face_resnet16_pair)
MODEL ?= face_emotion_net
#: recipe to train it by: prototxt/MODEL/solver_SOLVER.prototxt (default: solver.prototxt); the run is runs/MODEL_SOLVER
SOLVER ?=
#: weights to start from (.caffemodel), layer by layer as names and shapes are the same; for other classes the last starts anew
INIT ?=
#: with INIT: layers that stay as they are, conv (all up to the last convolution) or names with commas
FREEZE ?=
#: learning rate, base_lr (default: the solver's); for fine-tuning take a tenth of it
LR ?=
#: images an iteration trains on (default: the network's, 64); a GPU is quicker with 128, and LR twice the solver's
BATCH ?=
#: trained nets whose answers the net learns beside the labels: names of runs (for ALIGN=both also NAME@none), folders of trained ones, in quotes
TEACHERS ?=
#: with TEACHERS: the temperature that softens their probabilities (default: 2)
TEMPERATURE ?=
#: with TEACHERS: their share of the loss; the rest is the labels' (default: 0.9)
TEACHER_SHARE ?=
#: epochs to train; rescales max_iter, the learning rate's steps and the start of averaging (default: the solver prototxt's, max_iter / test_interval, 100 of most networks; 30 on the sample)
EPOCHS ?= $(if $(filter sample,$(DATASET)),$(if $(MINUTES),,30))
#: in place of EPOCHS: train as many as fit into this time, with the learning rate's schedule fitted to them
MINUTES ?=
#: train: choose the epoch on the validation split; train+val: train on both, without a choice (default: train)
TRAIN_ON ?= train
#: random seed: initial weights, crops, mirroring, dropout, shuffling; with N other than 1 the run is runs/MODEL_seedN (default: 1)
SEED ?= 1
#: numbers that convolutions and inner products are computed in: auto, fp32, bf16 or fp16 (default: the solver's, auto)
PRECISION ?=
#: auto, cpu, cuda or cuda:N (default: auto)
DEVICE ?= auto
#: threads of the data stages (default: one a core)
WORKERS ?=
#: what `make ensemble` averages, or `make compare` trains first, in quotes: networks, names of runs (MODEL_SOLVER_seedN), for ensemble also folders of trained ones; @none (@mtcnn, @both) behind one says how it sees the faces; all: every network of prototxt/
MODELS ?=
#: a photo for predict, features and explain (default: images/astronaut.png), and for report (default: a test face); for predict also a video, a folder, or a quoted pattern
IMG ?= images/astronaut.png
#: detect: find and align the faces of a photo; one: the image shows one face, aligned as those of training are; none: it is a cropped face (default: detect)
FACE ?= detect
#: predict, features, explain: leave out faces whose longer side has fewer pixels (default: about 20); the larger, the quicker
MIN_FACE ?=
#: predict, features, explain: leave out faces that the detector is less sure of, 0 to 1 (default: all that it finds)
MIN_CONFIDENCE ?=
#: for `make predict` in place of IMG: the number of a camera (0 is the first), its device or address; until Ctrl-C
CAMERA ?=
#: of a video, `make predict` looks at every Nth frame only (default: 1, all)
EVERY ?=
#: 0: `make predict` writes no annotated copies
PICTURES ?= 1
#: blobs that `make features` draws (names, in quotes; default: all), or the one that `make explain` takes Grad-CAM from
LAYER ?=
#: the emotion that `make explain` explains (default: the answer)
TARGET ?=
#: a .csv into which `make predict` writes the faces in all images, a row a face (videos have a CSV of their own)
TABLE ?=
#: 1: `make predict` prints JSON
JSON ?=
#: a trained .caffemodel, with deploy.prototxt and mean.binaryproto beside it: what predict, features, explain and report use, and evaluate tests on DATASET
WEIGHTS ?=
#: how `make evaluate WEIGHTS=…` looks at a face: centre (a crop), mirror (2), ten_crop (10); one of them or several, the first for the tables (default: all three)
VIEWS ?= centre mirror ten_crop
#: shipped: predict, features and explain use the weights that come with the project; run: those that `make train` made (default: shipped)
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
comma := ,
closing := )
# a path as make wants it, and a text as the shell does
escape = $(subst :,\:,$(subst $() $(),\ ,$(1)))
quoted = '$(subst ','\'',$(1))'
each_quoted = $(foreach word,$(1),$(call quoted,$(word)))
# what is on or off: anything else than 1 would silently be off
$(foreach v,SKIP_BAD NEUTRAL JSON,$(if $(filter-out 0 1,$($(v))),$(error $(v) is $($(v)); expected 1 or nothing)))
$(if $(filter-out 0 1,$(PICTURES)),$(error PICTURES is $(PICTURES); expected 0 or 1))

ifneq ($(CAMERA),)
ifneq ($(origin IMG),file)
$(error CAMERA is $(CAMERA) and IMG $(IMG); expected one of the two)
endif
endif

ifneq ($(MINUTES),)
ifneq ($(EPOCHS),)
$(error MINUTES is $(MINUTES) and EPOCHS $(EPOCHS); expected one of the two)
endif
endif

ifneq ($(words $(DATASET))$(findstring /,$(DATASET))$(filter . ..,$(DATASET)),1)
$(error DATASET is "$(DATASET)"; expected one word, the name of a folder of data/)
endif
D := data/$(DATASET)
ifeq ($(strip $(CSV)),)
$(error CSV is empty; expected a file or a folder, or without it data/$(DATASET).csv is taken)
endif
LAYOUTS := fer2013 ckplus rafdb affectnet folder
LAYOUT := $(LAYOUT)
ifeq ($(filter $(LAYOUTS),$(LAYOUT)),)
$(error LAYOUT is $(LAYOUT); expected one of $(LAYOUTS))
endif
# the folder of CK+ tells who the persons are, so that there are folds; its CSV form does not
FOLDED := $(if $(filter ckplus,$(LAYOUT)),$(shell test -d $(call quoted,$(CSV)) && echo yes))
NETWORKS := $(patsubst prototxt/%/solver.prototxt,%,$(wildcard prototxt/*/solver.prototxt))
ifeq ($(wildcard prototxt/$(MODEL)/solver.prototxt),)
$(error MODEL is $(MODEL); expected one of $(NETWORKS))
endif
NET := prototxt/$(MODEL)
# $(call pair,FOLDER): the net's prototxt where its input has two channels, a face aligned and as it is; else nothing
pair = $(shell tr '\n' ' ' 2>/dev/null < '$(1)/deploy.prototxt' | grep -Eo 'dim: *1 +dim: *2 ')
ALIGNMENTS := mtcnn none both
GIVEN := $(if $(WEIGHTS),$(shell dirname $(call quoted,$(WEIGHTS))))
ALIGN := $(ALIGN)
ifneq ($(words $(ALIGN))$(filter-out $(ALIGNMENTS),$(ALIGN)),1)
$(error ALIGN is $(ALIGN); expected mtcnn, none or both)
endif
FACES := $(D)/$(if $(filter none,$(ALIGN)),images,aligned)
VERSION :=
ifneq ($(FERPLUS),)
ifneq ($(LAYOUT),fer2013)
$(error FERPLUS is given, but LAYOUT is $(LAYOUT); FER+ labels the rows of FER2013's CSV alone)
endif
VERSION := /ferplus
endif
ifneq ($(FOLD),)
ifeq ($(FOLDED),)
$(error FOLD is $(FOLD), but "$(CSV)" does not tell who the persons are; expected the folder of CK+ (DATASET=ckplus CSV=path/to/folder))
endif
ifneq ($(words $(FOLD))$(filter-out 1 2 3 4 5 6 7 8 9 10,$(FOLD)),1)
$(error FOLD is $(FOLD); expected 1 to 10)
endif
VERSION := $(VERSION)/fold$(FOLD)
endif
# $(call work,ALIGN): where LMDBs, mean and runs lie
work = $(D)$(if $(filter none,$(1)),/unaligned)$(if $(filter both,$(1)),/both)$(VERSION)
W := $(call work,$(ALIGN))
RECIPE := $(NET)/solver$(addprefix _,$(SOLVER)).prototxt
ifeq ($(wildcard $(RECIPE)),)
$(error SOLVER is $(SOLVER); expected $(or $(patsubst $(NET)/solver_%.prototxt,%,$(wildcard $(NET)/solver_*.prototxt)),none: $(MODEL) has solver.prototxt alone))
endif
TRAIN_NET := $(NET)/$(notdir $(shell sed -n 's/^net: *"\([^"]*\)".*/\1/p' $(RECIPE)))
RUN := $(W)/runs/$(MODEL)$(addprefix _,$(SOLVER))$(if $(filter-out 1,$(SEED)),_seed$(SEED))$(if $(filter train+val,$(TRAIN_ON)),_train+val)
TRAINED := $(RUN)/$(MODEL).caffemodel
PLOTS := $(RUN)/loss.png $(RUN)/accuracy.png $(RUN)/metrics.csv
EVALUATION := $(RUN)/evaluation/evaluation.json
PREDICTION := $(RUN)/predictions/.done
# WEIGHTS may have any path: its folder, and a name for it, in which data/fer2013/runs/NET is fer2013_NET
ifneq ($(WEIGHTS),)
ifeq ($(FROM),run)
$(error WEIGHTS and FROM=run are given; expected one of the two)
endif
GIVEN_NAME := $(shell sed -E 's:^data/(.*/)?(runs/):\1:; t name; s:.*/::; :name; s:[/ ]+:_:g; s:^\.+$$:weights:' <<< $(call quoted,$(GIVEN)))
TRANSFER := $(W)/evaluations/$(GIVEN_NAME)/evaluation.json
endif

# the network that predict, features and explain use, and the files that it needs first
NETWORK = $(if $(WEIGHTS),--deploy $(call quoted,$(GIVEN)/deploy.prototxt) --weights $(call quoted,$(WEIGHTS)) --mean $(call quoted,$(GIVEN)/mean.binaryproto),$(if \
	$(filter run,$(FROM)),--deploy $(RUN)/deploy.prototxt --weights $(TRAINED) --mean $(RUN)/mean.binaryproto,$(if $(filter file,$(origin MODEL)),,--model $(MODEL))))
NETWORK_FILES = $(call escape,$(WEIGHTS)) $(if $(filter run,$(FROM)),$(TRAINED) $(EVALUATION))

# what predict, features and explain are to look at, and at which of its faces
SHOWN = $(if $(IMG),$(call quoted,$(IMG)),$(error IMG is empty; expected a photo, as in IMG=face.jpg))
LOOK = --face $(FACE) $(if $(MIN_FACE),--min-face $(MIN_FACE)) $(if $(MIN_CONFIDENCE),--min-confidence $(MIN_CONFIDENCE))

# $(call stale,NAME,VALUES,OUTPUT): FORCE where the file NAME does not hold VALUES, or OUTPUT, if given, is newer than it:
# then a stage was stopped between the two, and of what its output is made NAME does not say
stale = $(if $(filter-out x$(strip $(2)),x$(strip $(shell cat $(1) 2>/dev/null)))$(if $(3),$(shell test $(3) -nt $(1) && echo newer)),FORCE)
# values are joined to one word, since they may hold spaces
joined = $(subst $() $(),_,$(strip $(1)))
EXTRACT_OPTIONS := $(strip $(if $(filter-out fer2013,$(LAYOUT)),--layout $(LAYOUT)) $(if $(filter-out drop,$(CONTEMPT)),--contempt $(CONTEMPT)) \
	$(if $(FRAMES),--frames $(FRAMES)) $(if $(filter 1,$(NEUTRAL)),--neutral) $(if $(CLASSES),--classes $(call each_quoted,$(CLASSES))))
LMDB_OPTIONS := $(strip $(if $(FERPLUS),--ferplus $(call quoted,$(FERPLUS))) $(if $(filter none,$(ALIGN)),--size 48) $(if $(filter both,$(ALIGN)),--beside $(D)/images) $(if $(FOLD),--fold $(FOLD)))
SET_EXTRACT := $(call joined,CSV=$(CSV) SKIP_BAD=$(filter 1,$(SKIP_BAD)) $(EXTRACT_OPTIONS))
SET_LMDB := $(call joined,SEED=1$(if $(FERPLUS), FERPLUS=$(FERPLUS)))
SET_TRAIN := $(call joined,EPOCHS=$(EPOCHS) SEED=$(SEED) TRAIN_ON=$(TRAIN_ON) PRECISION=$(PRECISION)$(if $(INIT), INIT=$(INIT))$(if $(FREEZE), FREEZE=$(FREEZE))$(if $(LR), LR=$(LR))$(if $(BATCH), BATCH=$(BATCH))$(if $(MINUTES), MINUTES=$(MINUTES))\
	$(if $(TEACHERS), TEACHERS=$(TEACHERS) TEMPERATURE=$(TEMPERATURE) TEACHER_SHARE=$(TEACHER_SHARE)))
# A run is trained anew where its files changed, and where it is asked for by other settings than it had. It is not where
# none are given and something is to be done with it (`make evaluate`), or where `make ensemble` finds it trained.
ASKED := $(foreach v,EPOCHS MINUTES PRECISION INIT FREEZE LR BATCH TEACHERS TEMPERATURE TEACHER_SHARE,$(if $(filter-out file,$(origin $(v))),$($(v))))
TO_TRAIN := $(if $(MAKECMDGOALS),$(filter all train $(RUN)/%,$(MAKECMDGOALS)),all)
CHANGED_SETTINGS = $(if $(strip $(ASKED) $(TO_TRAIN)),$(call stale,$(RUN)/.train,$(SET_TRAIN)))
workers = $(if $(WORKERS),--workers $(WORKERS))
DATABASES := $(foreach s,train val test,$(W)/lmdb/$(s)_lmdb)
# a trained net by name: with a / a folder, else the name of a run on faces aligned by $(2)
folder = $(if $(findstring /,$(1)),$(1:%/=%),$(call work,$(2))/runs/$(1))
TAUGHT = $(foreach t,$(TEACHERS),$(call folder,$(call bare,$(t)),$(call align,$(t))))
# $(call evaluate,train+val): on what and how a trained net, or several, are evaluated, and calibrated: on unseen faces alone
seen_val = $(filter %train+val,$(1))
evaluate = $(if $(seen_val),,--lmdb val=$(W)/lmdb/val_lmdb) --lmdb test=$(W)/lmdb/test_lmdb \
	--exclude-duplicates-of $(W)/lmdb/train_lmdb$(if $(seen_val),$(comma)$(W)/lmdb/val_lmdb) \
	--views centre mirror ten_crop $(if $(seen_val),,--calibrate-on val) --device $(DEVICE)

# the page is on the run, or on WEIGHTS; its photo is one that was asked for, and not IMG's default
REPORT := $(if $(WEIGHTS),$(W)/reports/$(GIVEN_NAME),$(RUN)/report).html
REPORT_SET := $(dir $(REPORT)).$(basename $(notdir $(REPORT)))
REPORT_IMG := $(if $(filter-out file,$(origin IMG)),$(IMG))
SET_REPORT := $(call joined,IMG=$(REPORT_IMG)$(if $(REPORT_IMG), FACE=$(FACE)))

# what MODELS names: with a / a folder, else the name of a run, MODEL[_SOLVER][_seedN][_train+val]; behind it may
# stand which faces it sees, @mtcnn, @none or @both, which else its folder tells, if it is one of runs, its input, if it
# takes both, or ALIGN
RECIPES := $(wildcard prototxt/*/solver.prototxt prototxt/*/solver_*.prototxt)
ifeq ($(MODELS),all)
override MODELS := $(NETWORKS)
endif
base = $(shell sed -E 's/_train[+]val$$//; s/_seed[0-9]+$$//' <<< $(call quoted,$(1)))
find = $(strip $(foreach r,$(RECIPES),$(if $(filter $(1),$(subst /solver,,$(r:prototxt/%.prototxt=%))),$(r))))
recipe = $(call find,$(call base,$(1)))
model = $(word 2,$(subst /, ,$(call recipe,$(1))))
solver = $(patsubst solver_%,%,$(filter solver_%,$(basename $(notdir $(call recipe,$(1))))))
seed = $(or $(shell sed -nE 's/.*_seed([0-9]+)(_train[+]val)?$$/\1/p' <<< $(call quoted,$(1))),1)
bare = $(foreach m,$(1),$(if $(filter %@mtcnn,$(m)),$(m:%@mtcnn=%),$(if $(filter %@both,$(m)),$(m:%@both=%),$(m:%@none=%))))
place = $(shell sed -nE 's:.*data/[^/]+/(unaligned|both)/.*:\1:p' <<< $(call quoted,$(1)))
align = $(or $(patsubst @%,%,$(filter $(ALIGNMENTS:%=@%),$(1:$(call bare,$(1))%=%))),$(if $(findstring /runs/,$(1)),$(or $(patsubst \
	unaligned,none,$(call place,$(1))),mtcnn)),$(if $(call pair,$(if $(findstring /,$(1)),$(1:%/=%),prototxt/$(call \
	model,$(1)))),both),$(patsubst both,mtcnn,$(ALIGN)))
$(foreach t,$(TAUGHT),$(if $(wildcard $(t)/*.caffemodel),,$(error TEACHERS names $(t), which has no trained net; expected names of trained \
runs or paths of folders with a trained net)))
$(foreach m,$(MODELS),$(if $(findstring /,$(m)),,$(if $(findstring @,$(call bare,$(m)))$(if $(call bare,$(m)),,x),$(error MODELS names $(m); \
expected @mtcnn, @none or @both behind the name of a run, or nothing))))
# each as FOLDER@ALIGN
MEMBERS := $(foreach m,$(MODELS),$(call folder,$(call bare,$(m)),$(call align,$(m)))@$(call align,$(m)))
# the alignments, but ALIGN, that members see the faces by
OTHERS := $(strip $(foreach a,$(filter-out $(ALIGN),$(ALIGNMENTS)),$(if $(filter %@$(a),$(MEMBERS)),$(a))))
ifeq ($(MAKECMDGOALS),ensemble)
ifneq ($(and $(filter $(RUN)@%,$(MEMBERS)),$(wildcard $(TRAINED))),)
AS_TRAINED := 1
endif
endif
run = $(notdir $(call bare,$(1)))
weights = $(wildcard $(call bare,$(1))/$(or $(call model,$(call run,$(1))),*).caffemodel)
UNTRAINED := $(foreach m,$(filter $(foreach a,$(ALIGNMENTS),$(call work,$(a))/runs/%),$(MEMBERS)),$(if $(call weights,$(m)),,$(notdir $(m))))
$(foreach m,$(UNTRAINED),$(if $(call recipe,$(call bare,$(m))),,$(error MODELS names $(call bare,$(m)), which is not trained; expected names of runs \
($(subst /solver,,$(RECIPES:prototxt/%.prototxt=%)); also with _seedN, @none and @both) or paths of folders with a trained net)))
# by what `make train` makes the run NAME@ALIGN
asked = MODEL=$(call model,$(call run,$(1))) SOLVER=$(call solver,$(call run,$(1))) SEED=$(call seed,$(call run,$(1))) \
	TRAIN_ON=$(if $(findstring _train+val,$(1)),train+val,train) ALIGN=$(call align,$(1)) MODELS=
ENSEMBLE := $(W)/runs/ensemble_$(subst $() $(),+,$(patsubst %@$(ALIGN),%,$(notdir $(MEMBERS))))/evaluation/evaluation.json

# ---- targets --------------------------------------------------------------------------------------------------------
.PHONY: all env data extract align lmdb mean describe train plot evaluate report ensemble folds compare predict features explain test lint bench clean help FORCE
FORCE:

all: $(TRAINED) $(PLOTS) $(EVALUATION) $(D)/report.md $(PREDICTION) ## the whole pipeline: data, train, plot, evaluate, predict
	@echo "all up to date: $(RUN), $(D)/report.md"

env: $(READY) ## the Python environment in .venv
data: $(W)/mean.binaryproto $(D)/report.md ## extract, align, lmdb, mean, describe
extract: $(D)/images/manifest.json ## the source (CSV) to images by split and emotion
align: $(FACES)/manifest.json ## detected and aligned faces (ALIGN=none: the images as they are)
lmdb: $(W)/lmdb/manifest.json ## LMDBs of Caffe's Datum: train, val, test
mean: $(W)/mean.binaryproto ## mean image of the training split
describe: $(D)/report.md ## what the data is like: counts, montages, duplicates
train: $(TRAINED) ## train MODEL; stopped, it goes on from its last snapshot
evaluate: $(if $(WEIGHTS),$(TRANSFER),$(EVALUATION)) ## accuracy, confusion matrix, precision, recall, F1 of the run, calibration; or of WEIGHTS on DATASET
ensemble: $(if $(MODELS),$(ENSEMBLE),no-models) ## train those of MODELS that are not, and evaluate the mean of their probabilities
ifeq ($(LOG),)
plot: $(PLOTS) ## loss.png and accuracy.png of the run, or of LOG
else
plot: $(READY)
	$(PYTHON) -m train.plot $(call quoted,$(LOG))
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

# another source that is not there: what it should be, and how it is given
NEEDED_fer2013 := a CSV like FER2013's, or a folder train/EMOTION/*.jpg, test/EMOTION/*.jpg
NEEDED_ckplus := the folder of CK+ with its images and emotions (cohn-kanade-images, Emotion), CK+48, or ckextended.csv
NEEDED_rafdb := the folder "basic" of RAF-DB with EmoLabel and Image in it, or DATASET with train and test
NEEDED_affectnet := the folder of AffectNet with training.csv, validation.csv and Manually_Annotated_Images, or with train_set and val_set
NEEDED_folder := a folder train/EMOTION/*.jpg, test/EMOTION/*.jpg, or EMOTION/*.jpg
ifeq ($(filter data/sample.csv data/fer2013.csv,$(CSV))$(shell test -e $(call quoted,$(CSV)) && echo there),)
$(call escape,$(CSV)):
	@echo $(call quoted,error: $(CSV) is not there; expected $(NEEDED_$(LAYOUT)): make DATASET=$(DATASET)$(if \
		$(filter $(LAYOUT),fer2013 $(DATASET)),, LAYOUT=$(LAYOUT)) CSV=path) >&2
	@exit 1
endif

# Of these make removes none when it is stopped or an error comes after it: a stage replaces its folder as a whole, and does
# not replace one that has no manifest; and a net comes whole, perhaps from another process, because of which this one stops
.PRECIOUS: $(D)/images/manifest.json $(D)/aligned/manifest.json $(W)/lmdb/manifest.json $(TRAINED)

# what came or went anywhere in a source that is a folder changes the date of the folder that it was in
CHANGED := $(if $(wildcard $(D)/images/manifest.json),$(shell test ! -d $(call quoted,$(CSV)) || find -L $(call quoted,$(CSV)/) -type d -newer $(D)/images/manifest.json | head -n 1))
# make takes a name that ends as "CK+ (1)" does for a part of an archive, and with a slash for a folder
$(D)/images/manifest.json: $(call escape,$(CSV)$(if $(filter %$(closing),$(CSV)),/)) $(if $(CHANGED),FORCE,$(call stale,$(D)/.extract,$(SET_EXTRACT),$(D)/images/manifest.json)) | $(READY)
	$(PYTHON) -m preprocessing.extract $(call quoted,$(CSV)) $(D)/images $(if $(filter 1,$(SKIP_BAD)),--skip-bad) $(EXTRACT_OPTIONS) $(workers)
	@echo $(call quoted,$(SET_EXTRACT)) > $(D)/.extract

$(D)/aligned/manifest.json: $(D)/images/manifest.json | $(READY)
	$(PYTHON) -m preprocessing.align $(D)/images $(D)/aligned --device $(DEVICE) $(workers)

# in one order for all values of SEED, so that the runs of several stand side by side
$(W)/lmdb/manifest.json: $(FACES)/manifest.json $(call escape,$(FERPLUS)) $(call stale,$(W)/.lmdb,$(SET_LMDB),$(W)/lmdb/manifest.json) | $(READY)
	$(PYTHON) -m preprocessing.lmdb $(FACES) $(W)/lmdb --seed 1 $(LMDB_OPTIONS) $(workers)
	@echo $(call quoted,$(SET_LMDB)) > $(W)/.lmdb

$(W)/mean.binaryproto: $(W)/lmdb/manifest.json | $(READY)
	$(PYTHON) -m preprocessing.mean $(W)/lmdb/train_lmdb $@

$(D)/report.md: $(D)/images/manifest.json $(FACES)/manifest.json | $(READY)
	$(PYTHON) -m preprocessing.report $(D)/images $(if $(filter none,$(ALIGN)),-,$(FACES)) $@

# AS_TRAINED (of `make compare`, and of a member of `make ensemble`): a run is taken as it is
$(TRAINED): $(if $(AS_TRAINED),,$(W)/lmdb/manifest.json $(W)/mean.binaryproto $(RECIPE) $(TRAIN_NET) $(NET)/deploy.prototxt \
		$(call escape,$(INIT)) $(foreach t,$(filter-out $(RUN),$(TAUGHT)),$(foreach f,$(wildcard $(t)/*.caffemodel),$(call escape,$(f)))) $(CHANGED_SETTINGS)) | $(READY)
	$(PYTHON) -m train $(NET) --train $(W)/lmdb/train_lmdb --val $(W)/lmdb/val_lmdb --mean $(W)/mean.binaryproto \
		--output $(RUN) --seed $(SEED) --device $(DEVICE) --train-on $(TRAIN_ON) $(if $(SOLVER),--solver $(SOLVER)) \
		$(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(PRECISION),--precision $(PRECISION)) $(if $(INIT),--init $(call quoted,$(INIT))) \
		$(if $(FREEZE),--freeze $(call quoted,$(FREEZE))) $(if $(LR),--lr $(LR)) $(if $(BATCH),--batch $(BATCH)) \
		$(if $(TAUGHT),--teachers $(call each_quoted,$(TAUGHT))) $(if $(TEMPERATURE),--temperature $(TEMPERATURE)) $(if $(TEACHER_SHARE),--teacher-share $(TEACHER_SHARE))
	@echo $(call quoted,$(SET_TRAIN)) > $(RUN)/.train

ifeq ($(LOG),)
$(RUN)/metrics.csv: $(TRAINED) | $(READY)
	$(PYTHON) -m train.plot $(RUN)/train.log --iterations-per-epoch test
$(RUN)/loss.png $(RUN)/accuracy.png: $(RUN)/metrics.csv ;
endif

$(EVALUATION): $(TRAINED) $(W)/lmdb/manifest.json | $(READY)
	$(PYTHON) -m train.evaluate $(RUN)/deploy.prototxt $(TRAINED) --mean $(RUN)/mean.binaryproto \
		--output $(RUN)/evaluation $(call evaluate,$(TRAIN_ON))

ifneq ($(WEIGHTS),)
# a net of another data set: on all splits, and nothing is chosen on them, so nothing is calibrated
$(TRANSFER): $(call escape,$(WEIGHTS)) $(W)/lmdb/manifest.json $(call stale,$(W)/evaluations/.$(GIVEN_NAME),$(call joined,$(WEIGHTS) $(VIEWS))) | $(READY)
	$(PYTHON) -m train.evaluate $(call quoted,$(GIVEN)/deploy.prototxt) $(call quoted,$(WEIGHTS)) --mean $(call quoted,$(GIVEN)/mean.binaryproto) --output $(@D) \
		$(foreach d,$(DATABASES),--lmdb $(patsubst %_lmdb,%,$(notdir $(d)))=$(d)) --lmdb all=$(subst $() $(),$(comma),$(DATABASES)) \
		--views $(VIEWS) --device $(DEVICE)
	@echo $(call quoted,$(call joined,$(WEIGHTS) $(VIEWS))) > $(W)/evaluations/.$(GIVEN_NAME)
endif

# a trained member is taken as it is; one that is not is trained as `make train` does it
$(ENSEMBLE): $(foreach m,$(MEMBERS),$(wildcard $(call bare,$(m))/*.caffemodel)) $(addprefix member-,$(UNTRAINED)) \
		$(W)/lmdb/manifest.json $(foreach a,$(OTHERS),$(wildcard $(call work,$(a))/lmdb/manifest.json)) | $(READY) $(if $(OTHERS),other-faces)
	$(PYTHON) -m train.ensemble $(foreach m,$(MEMBERS),$(call bare,$(m))$(if $(filter $(OTHERS),$(call align,$(m))),@$(call work,$(call \
		align,$(m)))/lmdb)) \
		--output $(@D) $(call evaluate,$(call bare,$(MEMBERS)))

.PHONY: $(addprefix member-,$(UNTRAINED)) no-models other-faces
$(addprefix member-,$(UNTRAINED)): member-%: $(W)/mean.binaryproto | $(if $(OTHERS),other-faces)
	$(MAKE) train $(call asked,$*)

other-faces: $(W)/mean.binaryproto
	@for align in $(OTHERS); do $(MAKE) --no-print-directory --silent mean ALIGN=$$align MODELS= TEACHERS=; done

no-models:
	@echo 'error: MODELS is empty; expected networks, as in: make ensemble MODELS="face_emotion_net mini_xception"' >&2
	@exit 1

report: $(REPORT) ## one HTML page on the run (or WEIGHTS): settings, curves, accuracy, mistakes, what its layers see
$(REPORT): $(if $(WEIGHTS),$(TRANSFER),$(EVALUATION)) $(call escape,$(REPORT_IMG)) \
		$(call stale,$(REPORT_SET),$(SET_REPORT)) | $(READY)
	$(PYTHON) -m explain.report $(if $(WEIGHTS),$(call quoted,$(WEIGHTS)) --evaluation $(TRANSFER),$(RUN)) --lmdb val=$(W)/lmdb/val_lmdb \
		--lmdb test=$(W)/lmdb/test_lmdb --output $@ $(if $(REPORT_IMG),--image $(call quoted,$(IMG)) --face $(FACE)) --device $(DEVICE)
	@echo $(call quoted,$(SET_REPORT)) > $(REPORT_SET)

# one fold after the other, each made as `make evaluate FOLD=N` does it, so that what is up to date is not made again
folds: $(if $(FOLDED),,no-folds) ## CK+: train and evaluate on each of ten folds that share no person, then compare
	@for fold in 1 2 3 4 5 6 7 8 9 10; do $(MAKE) --no-print-directory train evaluate FOLD=$$fold; done
	@$(MAKE) --no-print-directory compare

.PHONY: no-folds
no-folds:
	@echo $(call quoted,error: "$(CSV)" does not tell who the persons are; expected the folder of CK+: make folds DATASET=ckplus CSV=path/to/folder) >&2
	@exit 1

# the runs that MODELS names: trained where they are not, and evaluated where that is not up to date
compare: $(READY) $(addprefix measured-,$(notdir $(MEMBERS))) ## all evaluated runs of DATASET: accuracy, size and time a face, as a table and a plot; those of MODELS are made first
	$(PYTHON) -m explain.compare $(D) --device $(DEVICE)

ifneq ($(filter compare,$(MAKECMDGOALS)),)
$(foreach m,$(MODELS),$(if $(findstring /,$(m)),$(error MODELS names $(m); expected names of runs alone, since `make compare` makes them)))
endif
.PHONY: $(addprefix measured-,$(notdir $(MEMBERS)))
$(addprefix measured-,$(notdir $(MEMBERS))): measured-%: $(W)/mean.binaryproto | $(if $(OTHERS),other-faces)
	@$(MAKE) --no-print-directory evaluate $(call asked,$*) $(if $(call weights,$(call folder,$(call run,$*),$(call align,$*))),AS_TRAINED=1)

# what `make` shows at the end: the new network on a photo
$(PREDICTION): $(TRAINED) $(EVALUATION) images/astronaut.png | $(READY)
	$(PYTHON) -m predict images/astronaut.png --deploy $(RUN)/deploy.prototxt --weights $(TRAINED) \
		--mean $(RUN)/mean.binaryproto --output $(RUN)/predictions --device $(DEVICE)
	@touch $@

predict: $(READY) $(NETWORK_FILES) ## the emotions in IMG (a photo, a video, a folder, a quoted pattern), or before CAMERA
	$(if $(filter 1,$(JSON)),@)$(PYTHON) -m predict $(if $(CAMERA),--camera $(call quoted,$(CAMERA)),$(SHOWN)) $(LOOK) --device $(DEVICE) \
		$(NETWORK) $(if $(EVERY),--every $(EVERY)) $(if $(filter 0,$(PICTURES)),--no-pictures) $(if $(TABLE),--table $(call quoted,$(TABLE))) $(if $(filter 1,$(JSON)),--json)

features: $(READY) $(NETWORK_FILES) ## what each layer (or LAYER) of the network makes of the face in IMG
	$(PYTHON) -m explain.features $(SHOWN) $(LOOK) --device $(DEVICE) $(NETWORK) $(if $(LAYER),--layer $(call each_quoted,$(LAYER)))

explain: $(READY) $(NETWORK_FILES) ## where in each face of IMG the network sees the emotion: Grad-CAM, guided gradients
	$(PYTHON) -m explain.saliency $(SHOWN) $(LOOK) --device $(DEVICE) $(NETWORK) \
		$(if $(TARGET),--target $(call quoted,$(TARGET))) $(if $(LAYER),--layer $(call quoted,$(LAYER)))

test: $(TESTED) ## the test suite, on all cores (four at most)
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(TESTED) ## ruff (format and rules) and mypy
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

bench: $(READY) ## seconds and rates of every stage, of training and of prediction, beside peers
	$(PYTHON) bench.py $(BENCH)

clean: ## remove data/DATASET (the CSV stays)
	$(if $(filter CSV=$(D)/%,$(subst CSV=$(CURDIR)/,CSV=,$(subst CSV=./,CSV=,CSV=$(CSV) $(shell cat $(D)/.extract 2>/dev/null)))),\
		$(error the source lies in $(D), which would be removed with it; expected it elsewhere: move it first))
	rm -rf $(D)

help: ## list the targets and the variables
	@echo "Targets:"
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'
	@echo "Variables (make VARIABLE=VALUE):"
	@awk '/^#: /{sub(/^#: /,""); text=text (text?" ":"") $$0; next} /^[A-Z_]+ \?=/{printf "  %-14s %s\n", $$1, text; text=""}' Makefile
