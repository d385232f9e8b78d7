"""Do what all trainings share: read weight files, place and round numbers, run in processes, save and resume states.

Knows db, runs and metrics. Importing this package loads no torch.
"""
