"""What every area needs, before it imports anything."""

import os
import signal

# a shell that runs the tests in the background ignores Ctrl-C; what they start must not
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# once Prefect has set up logging, a record outside a run would be a warning, and so an error
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
