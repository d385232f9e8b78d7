"""Run long jobs: queue, start, watch, stop and continue them.

A run is a process that runs the command a person would type. Knows db, nothing else of ours.
"""
