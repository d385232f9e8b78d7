"""Turn photos into a labelled dataset: import, pair, judge, resolve, measure, learn, label, rank, export.

Owns what a pair, a judgment and a label mean. Knows db, runs, metrics and dataset; never torch, gradio, reward or refl.
"""
