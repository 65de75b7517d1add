"""Every error a user can meet, one class per reaction of whoever catches it.

TrainyardError
├── InputError          fix the recipe, the data or the argument, then run again   (exit 2)
├── Unavailable         a service did not answer: wait and try again               (exit 2)
├── NotFound            no such version, alias or run                              (exit 2)
├── Refused             a check said no, so nothing ships                          (exit 1)
├── Waiting             people have to answer first, then run again                (exit 3)
└── TrainingFailed      the training process ended without a result                (exit 2)

A message says what was found, with values, then what to do. No class has an `__init__`: errors are
pickled between processes.
"""


class TrainyardError(Exception):
    """Base of everything raised on purpose. Its words never show a secret, wherever they go."""

    def __str__(self) -> str:
        from trainyard.secrets import mask  # noqa: PLC0415  (it raises these)

        return mask(super().__str__())


class InputError(TrainyardError, ValueError):
    """The recipe, the data or an argument cannot be used as it is."""


class Unavailable(TrainyardError, ConnectionError):
    """A service did not answer; the same call may work later."""


class NotFound(TrainyardError, LookupError):
    """The version, alias or run that was asked for does not exist."""


class Refused(TrainyardError):
    """A check said no. The release stops and nothing ships."""


class Waiting(TrainyardError):
    """The release goes on when people have answered; nothing ships until then."""


class TrainingFailed(TrainyardError, RuntimeError):
    """The training process ended without a result."""
