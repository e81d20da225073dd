"""The one exception for input that the user can mend."""


class InputError(ValueError):
    """Report bad input that the user can mend. The text is one clear line that names the fix.

    The scripts print the text without a traceback and exit with status 2. Where many files are bad, indented lines that
    name them follow the first line.
    """
