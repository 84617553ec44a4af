"""`textmill winrate`: an endpoint asked in both orders, and a sheet that people fill in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import openai
import pytest
from support.listening import listening
from support.tiny_llama import write_tiny_llama
from support.untrained_chat import export_untrained
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.evaluation.win_rates import Duel, ask_judge, read_sheet, write_sheet
from textmill.metrics.bootstrap import Bootstrap

DUELS = [Duel(str(n), f"question {n}", "long " * (n % 4 + 1), "long " * (n % 3 + 1)) for n in range(12)]
BETTER = sum(n % 4 > n % 3 for n in range(12)), sum(n % 4 == n % 3 for n in range(12))


@contextmanager
def endpoint(judge: Callable[[str, str], str]) -> Iterator[tuple[str, list[Any]]]:
    """A server of OpenAI's protocol; `judge` sees both answers and returns the reply."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append((self.path, self.headers["authorization"], body))
            text = body["messages"][-1]["content"]
            one, _, rest = text.partition("[Answer A]\n")[2].partition("\n\n[Answer B]\n")
            message = {"role": "assistant", "content": judge(one, rest.partition("\n\nWhich")[0])}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
            encoded = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as address:
        yield f"{address}/v1", seen


def longer(one: str, two: str) -> str:
    return "TIE" if len(one) == len(two) else "A" if len(one) > len(two) else "B"


def asked(judge: Callable[[str, str], str]) -> Any:
    with endpoint(judge) as (address, seen):
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        return ask_judge(DUELS, client, "judge", Bootstrap(200)), seen


def test_judge_by_length_finds_wins_and_ties() -> None:
    result, seen = asked(longer)
    assert (result.wins, result.ties) == BETTER and result.wins + result.ties + result.losses == 12
    assert result.rate.value == pytest.approx((BETTER[0] + BETTER[1] / 2) / 12)
    assert result.rate.low < result.rate.value < result.rate.high
    assert (result.by_position, result.unreadable) == (0, 0)
    assert len(seen) == 2 * (12 - BETTER[1])  # equal answers cost no request


def test_judge_that_favours_a_position_finds_ties_only() -> None:
    result, _ = asked(lambda one, two: "Answer: A.")
    assert result.ties == 12 and result.rate.value == 0.5 and result.by_position == 12 - BETTER[1]


def test_judge_that_tells_stories_is_refused() -> None:
    with pytest.raises(UserError, match="18 of 18 replies are none of A, B, TIE"):
        asked(lambda one, two: "A better answer would be longer, said B.")
    partly, _ = asked(lambda one, two: "Well." if len(one) == 5 else longer(one, two))
    assert partly.unreadable


def fill(sheet: Path, verdict: Callable[[dict[str, str]], str]) -> None:
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";" if ";" in file.readline() + str(file.seek(0)) else ","))
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")  # as a spreadsheet of many countries saves it
        writer.writeheader()
        writer.writerows({**row, "verdict": verdict(row)} for row in rows)


def test_sheet_is_blind_balanced_and_read_back(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    write_sheet(DUELS, sheet, ["first", "second"], seed=3)
    assert sum(json.loads((tmp_path / "sheet.csv.key.json").read_text())["swapped"].values()) == 6
    assert "first" not in sheet.read_text() and "second" not in sheet.read_text()
    marks = {"A": "1", "B": " 2", "TIE": "Tie"}
    fill(sheet, lambda row: marks[longer(row["answer_1"], row["answer_2"])])
    names, result = read_sheet(sheet, Bootstrap(200))
    assert names == ["first", "second"]
    assert (result.wins, result.ties) == BETTER and result.by_position is None
    fill(sheet, lambda row: "" if row["id"] == "7" else row["verdict"])
    with pytest.raises(UserError, match=r"sheet.csv:\d+: has no verdict\. Write 1, 2 or tie"):
        read_sheet(sheet, Bootstrap(200))
    fill(sheet, lambda row: "3" if row["id"] == "7" else row["verdict"])
    with pytest.raises(UserError, match="the verdict is '3'"):
        read_sheet(sheet, Bootstrap(200))


def test_sheet_has_no_formulas(tmp_path: Path) -> None:
    write_sheet([Duel("1", "=1+1", "@x", "-y"), DUELS[0]], tmp_path / "s.csv", ["a", "b"], seed=0)
    assert "'=1+1" in (tmp_path / "s.csv").read_text() and ",=1+1" not in (tmp_path / "s.csv").read_text()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    layout = Layout(tmp_path_factory.mktemp("winrate") / "project")
    write_tiny_llama(layout.pretrained)
    return str(export_untrained(layout, max_new_tokens=5))


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, ["winrate", *arguments], env=environment)


def test_command_writes_and_reads_a_sheet(model: str, tmp_path: Path) -> None:
    prompts, sheet = tmp_path / "prompts.jsonl", tmp_path / "sheet.csv"
    prompts.write_text(
        '{"prompt": "who are you"}\n\n{"prompt": {"messages": [{"role": "user", "content": "thanks"}]}}\n'
    )
    arguments = [model, model, "--prompts", str(prompts), "--sheet", str(sheet)]
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    again = run(*arguments)
    assert isinstance(again.exception, UserError) and "exists already" in str(again.exception)
    fill(sheet, lambda row: "tie")
    done = run("--sheet", str(sheet), "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["ties"] == 2


def test_command_asks_the_endpoint_that_is_named(model: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "who are you"}\n{"prompt": "thanks"}\n')
    with endpoint(longer) as (address, _):
        named = ["--judge", address, "--judge-model", "judge", "--key-variable", "JUDGE_KEY"]
        done = run(model, model, "--prompts", str(prompts), *named, "--json", JUDGE_KEY="sk-judge-secret")
        assert done.exit_code == 0, done.output + repr(done.exception)
        assert json.loads(done.stdout)["rate"]["value"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either --judge or --sheet"),
        (["a", "b", "--judge", "http://127.0.0.1:9/v1"], "Give --prompts too"),
        (["a", "b", "--prompts", "p", "--judge", "http://127.0.0.1:9/v1"], "the judge needs a model"),
        (
            ["a", "b", "--prompts", "p", "--judge", "x", "--judge-model", "m", "--key-variable", "NO_KEY"],
            "NO_KEY is not",
        ),
        (["--sheet", "none.csv"], "no sheet with its .key.json here"),
        (["a", "b", "--prompts", "none.jsonl", "--sheet", "new.csv"], "none.jsonl: no such file"),
    ],
)
def test_command_tells_what_is_missing(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, UserError) and message in str(done.exception)


def test_judge_that_cannot_be_reached_is_one_line() -> None:
    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)
    with pytest.raises(UserError, match=r"the judge gives no answer \(Connection error"):
        ask_judge(DUELS, client, "judge", Bootstrap(200))
