"""Caffe's command-line tools."""
