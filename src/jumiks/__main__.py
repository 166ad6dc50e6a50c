# SPDX-License-Identifier: Apache-2.0
"""`python -m jumiks` is the command, also where its script is not in the PATH."""

import sys

from .cli import main

sys.exit(main())
