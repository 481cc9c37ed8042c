"""Imported first by every job: the package of this checkout goes before an installed one.

So a job submitted with `--working-dir .` runs the code that was submitted, not the code of the cluster's image
(`eegvision.cluster.connect` then sends it on to the workers).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "platform"))
