"""Work with Prolific: make and run its studies, review and pay its submissions, take its webhooks."""
