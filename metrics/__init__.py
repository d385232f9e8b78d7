"""Compute metric values of images: named lists of metrics, pyiqa's and our own. Imports only pixels of our packages.

`lists` says what is measured and loads no torch, so that the app's process may import it; `compute` measures.
`accuracy` and `votes` hold answers against people's: formulas that annotate and reward share.
"""
