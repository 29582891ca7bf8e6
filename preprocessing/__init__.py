"""The data stages: from a CSV or a folder of faces to aligned images, LMDB, and the mean."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # before torch is imported: see caffe/__init__.py
