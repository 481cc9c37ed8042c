"""What trained models are worth: embeddings, probes, retrieval, and scores stored with all their circumstances.

`record.score_trials` is the way in: it opens the test set (with a line in the ledger), scores on the cluster and
writes `RUN/evaluations/`. `record.evaluate` scores one model in this process, in a notebook for example.
"""
