"""From an exported preference dataset to a reward model: a CLIP whose cosine of face and prompt is the reward.

Knows runs and metrics, and `runs.UserError` for messages to the person at the screen; never annotate, refl or db.
Importing this package or its `config` loads no torch.
"""
