"""Errors that a user can mend: the command line prints them as one line and exits with 2."""


class UserError(Exception):
    """Something the user gave cannot work; the text says what was got, what is accepted and what to do."""


class ConfigError(UserError):
    """An experiment, an override or a target is wrong."""


class DataError(UserError):
    """A file or a data set is wrong; the text names it."""
