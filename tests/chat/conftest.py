"""The chat's tests share fakes, which the programs that they start in a terminal import as well."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
