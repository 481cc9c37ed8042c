"""Looking inside the model of a run, over the cluster: `analyses` in chunks of pictures, their tables and figures.

Each module makes one analysis of a trained model: it opens the run (`opened`), computes chunks (`fanout.compute`),
puts them together, and leaves figures, tables and an MLflow run that names the model it looked at.
"""
