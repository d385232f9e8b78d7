"""From an exported preference dataset to a reward model: a CLIP whose cosine of face and prompt is the reward.

Knows db, runs, metrics, dataset and training; never annotate or refl. Importing this package or a `config` loads no
torch.
"""
