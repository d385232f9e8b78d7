"""Serve the app by several processes, and say how it does: workers, /healthz, /metrics."""
