"""Measures what the board says of each built-in mixer beside its scores: parameters, state, and cost beside attention.

    python benchmarks/facts.py [NAME ...]

Writes `bestiary/results/v1-facts.csv` after each mixer, without those that are in it already unless they are named.
Takes about half a minute a mixer, on an otherwise idle core.
"""

import sys
from pathlib import Path

import pandas as pd

from bestiary.experiments.protocol_v1 import MIXERS
from bestiary.results.facts import family, measure

FILE = Path(__file__).parents[1] / "bestiary" / "results" / "v1-facts.csv"

if __name__ == "__main__":
    known = pd.read_csv(FILE, index_col="mixer").to_dict("index")
    for name in sys.argv[1:] or [name for name in MIXERS if name not in known]:
        known[name] = {"family": family(MIXERS[name]), **measure(MIXERS[name])}
        table = pd.DataFrame.from_dict(known, orient="index").rename_axis(index="mixer")
        counts = [name for name in table if name == "parameters" or name.startswith("state ")]
        table = table.astype(dict.fromkeys(counts, int))
        table.sort_index().to_csv(FILE, float_format="%.4g")
        print(name, known[name], flush=True)
