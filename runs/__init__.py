"""A long job from request to exit: its row, its folder, its progress lines, its process.

A run is a process that runs the command a person would type. Knows db, nothing else of ours.
"""

from db.errors import UserError

__all__ = ["UserError"]  # for reward, which knows runs and not db
