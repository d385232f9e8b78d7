"""Decode image files to the pixels that a browser shows: the one reader of the whole project.

Below everything else, so that what is stored, measured, rewarded and trained on is read by the same code. Imports
nothing of ours, nor torch.
"""
