"""Looking inside a trained model: pure functions of a model and a chunk of data, with torch, NumPy and SciPy alone.

`suppression` saliency of pictures, `channels` and `windows` of EEG, `association` of feature maps with channels,
`activation` maximisation, `semantic` similarity. Chunks are joined in any order; spreading them comes on top.
"""
