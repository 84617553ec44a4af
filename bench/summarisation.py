"""ROUGE of summaries beside the beginning of the text: DialogSum, and docstrings.

Each experiment goes through its own stages. `dialogsum` needs its files (see `conf/data/dialogsum.yaml`)
and is left out, and said to be, where they are missing.
"""

from __future__ import annotations

from bench.applications import SHARED, rows, run

FIGURES = ("rouge1", "rouge2", "rougeL")


def main() -> None:
    """Print the table."""
    print("| data | model | ROUGE-1 | ROUGE-2 | ROUGE-L |")
    print("|---|---|---:|---:|---:|")
    if (SHARED / "dialogsum").is_dir():
        print("\n".join(rows("DialogSum, 3 references", "three turns chosen by MiniLM", run("dialogsum"), FIGURES)))
    else:
        print(f"| DialogSum | not measured: {SHARED / 'dialogsum'} is missing | | | |")
    for experiment, model in (
        ("summarisation", "MiniLM with a new decoder"),
        ("extractive_summarisation", "a sentence chosen by MiniLM"),
    ):
        print("\n".join(rows("docstrings", model, run(experiment), FIGURES)))
    print("\nF1 of stemmed words, best of several references, with 95 % bootstrap intervals; those of a difference")
    print("are of paired draws. Lead takes the number of sentences (or turns) that is best on validation.")


if __name__ == "__main__":
    main()
