"""Image to metric values: named lists of metrics, pyiqa's and our own measures. Knows of our packages pixels alone.

`lists` says what is measured and loads no torch, so that the app's process may import it; `compute` measures.
`accuracy` and `votes` hold answers against people's: formulas that annotate and reward share.
"""
