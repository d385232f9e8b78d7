"""What trainings share: placement, precision, processes, memory."""
