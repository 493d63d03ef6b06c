"""Turn Parquet files of raw orders into one table of revenue, with polars on Dask.

Run it with ``python -m examples.parquet_etl FOLDER``: it writes the raw files first, and starts a cluster of its own.
``--scheduler ADDRESS`` uses a cluster that runs. All of its workers must see the folder.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl
from dask.distributed import LocalCluster

import wove
from wove import weave


def revenue(folder: Path) -> Path:
    """Return the file with the revenue of each customer, summed over the raw files in *folder*."""
    with weave(folder=str(folder.resolve())) as w:

        @w.do
        def sources(folder: str) -> list[str]:
            return [str(path) for path in sorted(Path(folder).glob("raw-*.parquet"))]

        @w.do("sources", environment="dask", retries=1)
        def cleaned(source: str) -> str:
            target = source.replace("raw-", "cleaned-")
            orders = pl.scan_parquet(source).filter(pl.col("amount") > 0)
            by_customer = orders.group_by("customer").agg(pl.col("amount").sum())
            by_customer.sink_parquet(target)  # a path travels, not the table
            return target

        @w.do(environment="dask")
        def table(cleaned: list[str], folder: str) -> str:
            target = f"{folder}/revenue.parquet"
            parts = pl.scan_parquet(cleaned).group_by("customer").agg(pl.col("amount").sum())
            parts.sort("customer").sink_parquet(target)
            return target

    return Path(w.result.table)


def write_raw(folder: Path) -> None:
    """Write three months of orders. Some of them are corrections that must not be counted."""
    folder.mkdir(parents=True, exist_ok=True)
    for month in range(1, 4):
        orders = {"customer": ["ada", "bob", "ada"], "amount": [10 * month, 5, -1]}
        pl.DataFrame(orders).write_parquet(folder / f"raw-{month}.parquet")


@contextlib.contextmanager
def scheduler(address: str | None) -> Iterator[str]:
    """Give the address of a scheduler: the one that was named, or one of a cluster on this machine."""
    if address is not None:
        yield address
    else:
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)  # type: ignore[no-untyped-call]
        with cluster:
            yield cluster.scheduler_address


def main() -> None:
    """Run the pipeline in the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scheduler")
    arguments = parser.parse_args()
    write_raw(arguments.folder)
    with scheduler(arguments.scheduler) as address:
        wove.config(
            environments={"dask": {"executor": "dask", "executor_config": {"address": address}}}
        )
        for customer, amount in pl.read_parquet(revenue(arguments.folder)).iter_rows():
            print(customer, amount)
        wove.shutdown()  # says goodbye to the cluster before it stops


if __name__ == "__main__":
    main()
