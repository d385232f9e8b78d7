"""Define errors whose message is written for the person at the screen."""


class UserError(Exception):
    """What is wrong, what was seen and what to do: one line and exit code 2 in a terminal, a message in a page."""


class UnavailableError(Exception):
    """The database is there but did not answer in time: another one writes, or it hangs. Trying again may help."""
