"""Work over the processes of a cluster: a function over items as tasks, and chunks over actors that hold a model.

`spread` (`tasks`) hands results back to its caller. `compute` (`crew`) is for analyses of hours: every chunk's arrays
become one file in a folder (`chunks`), and whatever ends a call, the next one goes on with what is not finished.
"""

from eegvision.fanout.chunks import Chunk, Results, results
from eegvision.fanout.crew import compute
from eegvision.fanout.progress import Progress
from eegvision.fanout.tasks import spread

__all__ = ["Chunk", "Progress", "Results", "compute", "results", "spread"]
