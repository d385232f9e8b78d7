"""Restorers: from a low-quality face to a restored one, all behind the same small surface (`surface.py`).

Loading this package loads no torch; its modules do.
"""
