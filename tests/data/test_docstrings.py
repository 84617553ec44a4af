"""Summaries and bodies from the docstrings of packages."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmill.fetching.sources.archives import open_archive
from textmill.fetching.sources.docstrings import DocstringsSource, summary_and_body

NUMPYDOC = """Compute the :class:`~graph.Path` between two nodes of a graph.

    The path is found by breadth-first search [1]_, which visits every node
    at most once and needs ``O(n)`` memory. For example::

        shortest(graph, 1, 2)

    Parameters
    ----------
    graph : Graph
        Where the nodes are to be looked for by the search.

    Notes
    -----
    Edges without a weight count as *one* step.

    Examples
    --------
    >>> shortest(graph, 1, 2)
    """

GOOGLE = """Opens a connection, e.g. to a server. It is kept until nobody needs it any more, and then closed.

    While it is open, other threads may use it too.
    Args:
        address: Where the server is, and nothing but that.

    Returns:
        A connection that is open.
    """


def test_prose_is_told_from_sections_code_and_markup() -> None:
    assert summary_and_body(NUMPYDOC) == (
        "Compute the graph.Path between two nodes of a graph.",
        "The path is found by breadth-first search, which visits every node at most once and needs O(n) memory. "
        "Edges without a weight count as one step.",
    )
    assert summary_and_body(GOOGLE) == (
        "Opens a connection, e.g. to a server.",
        "It is kept until nobody needs it any more, and then closed. While it is open, other threads may use it too.",
    )


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Only a summary of what is done here.",
        "Short.\n\n" + "A body with enough words to be one, " * 4,
        "A summary that is followed by a formula.\n\n" + "x_1 = 2 ** 3 + 4 " * 8,
        "A summary that is followed by an address.\n\nSee https://example.org for all the rest of what is to be said.",
    ],
)
def test_docstring_without_pair_is_skipped(docstring: str) -> None:
    assert summary_and_body(docstring) is None


@given(st.text(alphabet="ab .:`*[]_<>-=\n", max_size=200))
def test_summary_and_body_accepts_any_docstring(docstring: str) -> None:
    pair = summary_and_body(docstring)
    assert pair is None or all("\n" not in text and text.strip() == text for text in pair)


def test_rows_come_from_the_packages_own_files_and_no_text_twice(tmp_path: Path) -> None:
    wheel = tmp_path / "paths-1.0-py3-none-any.whl"
    code = f'def shortest():\n    """{NUMPYDOC}"""\n\nclass A:\n    def connect(self):\n        """{GOOGLE}"""\n'
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("paths/__init__.py", code)
        archive.writestr("paths/again.py", code)
        archive.writestr("paths/broken.py", "def :\n")
        archive.writestr("paths/tests/test_paths.py", code.replace("nodes", "places").replace("open", "shut"))
    source = DocstringsSource.__new__(DocstringsSource)
    source._seen = set()
    with open_archive(wheel) as opened:
        rows = list(source.rows(opened, "paths"))
    assert [row["name"] for row in rows] == ["paths.shortest", "paths.A.connect"]
    assert all(row["package"] == "paths" for row in rows)
