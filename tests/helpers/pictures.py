"""What the tests of figures share: PNG files, read without the code under test."""

import struct

import numpy as np
from matplotlib.image import imread


def png_size(path):
    """Width and height in pixels."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def pixels(path):
    """[height, width, RGB], 0 to 1."""
    return imread(path)[..., :3]


def has_colour(path, colour):
    """[height, width] of bool: the pixels of a colour such as "#D55E00"."""
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return (abs(pixels(path) - rgb) < 0.02).all(axis=2)


def assert_picture(path, least=400):
    """Check that a PNG has that many pixels a side, and more than a blank or a frame."""
    assert min(png_size(path)) >= least and path.stat().st_size > 5000
    assert len(np.unique(pixels(path)[..., 1])) > 20
