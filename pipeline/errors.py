"""The one exception a user is meant to read."""


class MachineError(Exception):
    """The machine failed, not the clip: memory ran out, a program was killed. It stops a run and is never recorded."""


class InputError(Exception):
    """Wrong usage or input: exit status 2.

    The message is one or two lines: what is wrong, where, what was expected, what was found, what to do next.
    """
