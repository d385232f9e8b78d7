"""Read and write dataset folders: rows, formats, cards, and the tables that people's programs write.

Knows db and runs; never torch.
"""
