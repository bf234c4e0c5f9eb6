"""The one exception a command line shows as a single line."""


class UserError(ValueError):
    """Something the user can put right: a wrong path, size, option or file.

    The message is one line and says what to do. Entry points print it and leave with exit code 2;
    library callers see an ordinary ``ValueError``.
    """
