"""``python -m wove.integrations.temporal``: a worker for Wove's workflow and activity."""

import sys

from wove.integrations.temporal.worker import main

if __name__ == "__main__":
    sys.exit(main())
