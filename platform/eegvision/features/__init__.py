"""Frozen features of a data set's pictures and texts: made once and kept, or read from files of other labs.

features --cache--> a network's layers, computed once per (pictures, network, layer), mapped into memory after that
         --files--> what NICE, ATM and UBP release, or a file of one's own, held against the data set's pictures
"""

from eegvision.features.lookup import image_features, text_features, warm

__all__ = ["image_features", "text_features", "warm"]
