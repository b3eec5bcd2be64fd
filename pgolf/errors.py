"""The one exception for what a user can get wrong."""


class InputError(ValueError):
    """Bad input: the message names the key or file, its value and the remedy. Commands turn it into exit code 2."""
