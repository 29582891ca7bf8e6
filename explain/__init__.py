"""Seeing what a network does: its feature maps, what of a face its answer rests on, its filters, a picture of it."""
