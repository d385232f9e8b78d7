"""Tell what the licences of code, weights and data allow. Imports nothing of ours.

`terms` reads a licence's words, `packages` those of installed packages; rooms say in a module `licences` what they use.
"""
