"""How fast segments come out of Parquet: a column per channel (ours) against one fixed-shape tensor column.

    python benchmarks/layout.py [--pairs 5] [--quick]          half a minute; needs 1 GB of disk for temporary files

Both files hold the same 2,048 segments of 128 x 440 float32 in row groups of 64, uncompressed, with page checksums that
are compared when reading. Each pair reads all channels, then 34 of 128, from warm files, and gives one ratio: the
tensor's time over ours. Of a tensor all channels have to be read whatever is wanted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _results import tell

from eegvision.ingest.shards import eeg_array, eeg_column

N, C, T, GROUP, WANTED = 2048, 128, 440, 64, 34
CHANNELS = tuple(f"E{number}" for number in range(C))


def write(path: Path, column_of: Callable[[np.ndarray], pa.Array]) -> None:
    rng = np.random.default_rng(0)
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    writer = None
    for _ in range(0, N, GROUP):
        column = column_of(rng.standard_normal((GROUP, C, T), dtype=np.float32))
        table = pa.table([column], pa.schema([pa.field("eeg", column.type, nullable=False)]))
        writer = writer or pq.ParquetWriter(path, table.schema, **options)
        writer.write_table(table, row_group_size=GROUP)
    assert writer is not None
    writer.close()


def seconds(path: Path, columns: list[str], array_of: Callable[[pa.ChunkedArray], np.ndarray]) -> tuple[float, float]:
    """Return the time a file takes and the sum of what was read, which both layouts must agree on."""
    start, total = time.perf_counter(), 0.0
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.metadata.num_row_groups):
            eeg_NCT = array_of(file.read_row_group(group, columns=columns, use_threads=False)["eeg"])
            total += float(eeg_NCT[:, :WANTED, 0].sum())
    return time.perf_counter() - start, total


def tensor_array(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().to_numpy_ndarray()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three pairs")
    options = parser.parse_args()
    pairs, found = 3 if options.quick else options.pairs, {}
    with tempfile.TemporaryDirectory() as folder:
        ours, tensor = Path(folder) / "ours.parquet", Path(folder) / "tensor.parquet"
        write(ours, lambda eeg_NCT: eeg_column(eeg_NCT, CHANNELS))
        write(tensor, pa.FixedShapeTensorArray.from_numpy_ndarray)
        print("| channels | min | median | max | ours, MB/s of samples wanted |\n|---|---|---|---|---|")
        for n_wanted in (C, WANTED):
            names = CHANNELS[:n_wanted]
            columns = [f"eeg.{name}" for name in names]
            ratios, speeds = [], []
            for _ in range(pairs):
                mine, sum_mine = seconds(ours, columns, lambda column, names=names: eeg_array(column, names))
                peer, sum_peer = seconds(tensor, ["eeg"], tensor_array)
                assert np.isclose(sum_mine, sum_peer), "the two files differ"
                ratios.append(peer / mine)
                speeds.append(4e-6 * N * n_wanted * T / mine)
            middle, speed = statistics.median(ratios), statistics.median(speeds)
            print(f"| {n_wanted} of {C} | {min(ratios):.2f} | **{middle:.2f}** | {max(ratios):.2f} | {speed:.0f} |")
            found[n_wanted] = ratios
        for n_wanted, ratios in found.items():
            tell(f"reading {n_wanted} of {C} channels", ratios, target=">= 1", peer="one tensor column")


if __name__ == "__main__":
    main()
