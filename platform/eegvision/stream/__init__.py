"""Shards to batches of tensors. Where samples live meanwhile (device, host, stream) is decided here and nowhere else.

    shards --read, decode, average, normalise--> arrays in Ray's object store, shared by all processes --gather, crop-->
    batches

What fits into memory is read once per job, every picture decoded once: by Ray Data over the whole cluster where that
pays, else by threads. What does not fit is streamed through Ray Data again in every pass. Without Ray the same code
gives the same arrays. Ray and torch are imported where they are used: a notebook needs no Ray, and the processes that
read and decode start without torch (seconds each).
"""

from eegvision.stream.batches import IMAGE_MEAN, IMAGE_STD, Batch, Batches, central_views, crop_by_index, crop_by_slices
from eegvision.stream.repeats import Repeats
from eegvision.stream.store import RESIZE, Store, load_store

__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "RESIZE",
    "Batch",
    "Batches",
    "Repeats",
    "Store",
    "central_views",
    "crop_by_index",
    "crop_by_slices",
    "load_store",
]
