"""Define errors whose message is written for the person at the screen."""


class UserError(Exception):
    """Error for a person: what is wrong, what was seen, what to do. One line and exit code 2, or a page's message."""


class UnavailableError(Exception):
    """The database is there but did not answer in time: another one writes, or it hangs. Trying again may help."""
