"""Define restorers, from a low-quality face to a restored one, all with the same small surface (`surface.py`).

Loading this package loads no torch; its modules do.
"""
