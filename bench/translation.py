"""BLEU and chrF of translation beside translation memory and copying: Multi30k, and the catalogues of interfaces.

Each experiment goes through its own stages. `multi30k` needs its files (see `conf/data/multi30k.yaml`)
and is left out, and said to be, where they are missing.
"""

from __future__ import annotations

from bench.applications import SHARED, rows, run

FIGURES = ("bleu", "chrf")


def main() -> None:
    """Print the table."""
    print("| data | model | sacreBLEU | chrF |")
    print("|---|---|---:|---:|")
    if (SHARED / "multi30k").is_dir():
        print("\n".join(rows("Multi30k en-de, test 2016", "encoder-decoder from scratch", run("multi30k"), FIGURES)))
    else:
        print(f"| Multi30k | not measured: {SHARED / 'multi30k'} is missing | | |")
    print("\n".join(rows("catalogues en-de", "encoder-decoder from scratch", run("translation"), FIGURES)))
    print("\nWith 95 % bootstrap intervals over sentences; those of a difference are of paired draws.")
    print(
        "Signatures: BLEU `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp`, chrF `case:mixed|eff:yes|nc:6|nw:0|space:no`."
    )


if __name__ == "__main__":
    main()
