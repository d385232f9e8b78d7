"""From a reward model to a tuned restorer; so far the published degradation that makes photos to restore.

Knows db.records, runs, metrics and reward; never annotate. Importing this package loads no torch.
"""
