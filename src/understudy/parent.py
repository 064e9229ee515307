"""The process that started this one, asked when the package is imported: once torch is there too, it may be gone."""

import os

PARENT = os.getppid()
