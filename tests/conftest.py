"""A shell that runs the tests in the background ignores Ctrl-C; what they start must not."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
