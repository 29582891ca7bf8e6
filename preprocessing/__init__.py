"""The data stages: from a CSV or a folder of faces to aligned images, LMDB, and the mean."""
