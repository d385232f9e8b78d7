"""Train a reward model on an exported preference dataset: a CLIP whose cosine of face and prompt is the reward.

Knows db, runs, metrics, dataset and training; never annotate or refl. Importing this package or a `config` loads no
torch.
"""
