"""Fine-tune a restorer by the gradient of a reward (ReFL)."""
