"""`python -m tunestation.doctor`."""

import sys

from tunestation.doctor.main import main

sys.exit(main())
