"""The one exception for input that the user can mend."""


class InputError(ValueError):
    """Bad input that the user can mend; its text is the one clear line that names the fix.

    The scripts print the text without a traceback and exit with status 2. (Where many files are at fault, indented
    lines that name them follow the one line.)
    """
