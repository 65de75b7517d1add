"""`python -m trainyard`: see trainyard/cli.py."""

import sys

from trainyard.cli import main

sys.exit(main())
