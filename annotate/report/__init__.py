"""Report on judgments: rankings, agreement, pictures."""
