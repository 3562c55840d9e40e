"""The exceptions a user is meant to read."""

import errno

# Of the machine, its disk or network, not of a clip: recorded as a clip's, they would outlast the fault.
MACHINE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}
    | {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN}
    | {errno.ENODEV, errno.ENXIO}  # a disk that was pulled out
)
# What torch, Python's threads and the loader of libraries say where memory runs out, in small letters.
MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
MEMORY_WORDS += ("alloc_failed", "can't start new thread", "failed to map segment")


class MachineError(Exception):
    """The machine failed, not the clip: memory ran out, a program was killed. It stops a run and is never recorded."""


class InputError(Exception):
    """Wrong usage or input: exit status 2.

    The message is one or two lines: what is wrong, where, what was expected, what was found, what to do next.
    """


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, or address space, ran out."""
    told = isinstance(error, RuntimeError | ImportError) and any(words in str(error).lower() for words in MEMORY_WORDS)
    return told or isinstance(error, MemoryError)


def is_machine_fault(error: Exception) -> bool:
    """Return whether an error that came up at a clip is not the clip's: it stops the run and is never recorded."""
    if isinstance(error, OSError):
        return error.errno in MACHINE_ERRNOS
    return isinstance(error, InputError | MachineError | ImportError) or out_of_memory(error)


OUT_OF_TIME = "decoding was stopped: it took longer than the time allowed"


class ClipError(Exception):
    """A clip cannot be read; the text is one line without paths or addresses."""
