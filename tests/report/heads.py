"""Caps, pictures and readers that the tests of figures share; imported as `report.heads`."""

import functools

import numpy as np
import pandas as pd

from eegvision.ingest import simulate, stimuli
from eegvision.vocab import Montage


@functools.cache
def cap(n_chans: int) -> Montage:
    """The simulator's cap of so many channels."""
    few = simulate.Simulation(n_subjects=1, n_classes=2, images_per_class=2, repetitions=1, n_chans=n_chans)
    return simulate.simulate(few).header.montage


@functools.cache
def picture(label: int, px: int = 24) -> np.ndarray:
    """A simulated picture, uint8 [px, px, 3]."""
    return stimuli.draw(stimuli.make_scene(0, label, 0), px)


def read_csv(files):
    return pd.read_csv(next(file for file in files if file.suffix == ".csv"))


def read_svg(files):
    return next(file for file in files if file.suffix == ".svg").read_text()


def check_files(files, name):
    """The four files of one figure are there and not empty."""
    assert [file.name for file in files] == [f"{name}.{ending}" for ending in ("svg", "pdf", "png", "csv")]
    assert all(file.stat().st_size > 0 for file in files)


def same_svg(first, second):
    return read_svg(first) == read_svg(second)
