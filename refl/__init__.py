"""Tune restorers by a reward model: published restorers, degradation, restoring, pretraining, ReFL.

Owns what makes restored faces and what fine-tunes it; its outputs become candidates through db.records, to be judged
like any other. Knows db, runs, metrics, training and reward; never annotate. Importing this package loads no torch.
"""
