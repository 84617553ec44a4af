"""The page at `/` in a real browser: chats of two models, and a form for each task, against real servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import uvicorn
from support.browser import browser
from support.http_client import Answer
from support.http_client import ask as ask_in_a_loop
from support.serving import Server, served
from support.system_packages import require_package
from support.tiny_bpe import write_tiny_bpe_llama
from support.untrained_chat import export_untrained
from support.untrained_tasks import SENTENCES, export_untrained_task

from textmill.config.layout import Layout
from textmill.files import read_json, sha256_file, write_json
from textmill.predicting.exported import write_manifest
from textmill.serving.application import Service, build_application
from textmill.serving.loading import FolderSource, load_model
from textmill.serving.metrics import ServingMetrics
from textmill.serving.server import DrainingServer, listen
from textmill.serving.settings import ServeSettings
from textmill.serving.watcher import Watcher

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page

pytestmark = pytest.mark.slow

TOKEN = "s3cret-of-this-test-0123456789"
HOSTILE = "who <b>are</b> \"you\"? it's $HOME `x` \\ <img src=x onerror=document.title='hacked'> \U0001f33e\n北京"
LONGEST = 3000
SECONDS = 60_000

Visit = Callable[[int], "Page"]


def ask(*arguments: Any) -> Answer:
    """`http_client.ask` in a thread of its own: Playwright has a running event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ask_in_a_loop, *arguments).result()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    with browser("http://127.0.0.1:", tmp_path_factory.mktemp("profile")) as context:
        context.set_default_timeout(SECONDS)
        yield context


@pytest.fixture
def visit(chromium: BrowserContext) -> Iterator[Visit]:
    """Open the page of a server; at the end, no script has failed and no other host was asked."""
    page = chromium.new_page()
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)

    def go(port: int) -> Page:
        page.goto(f"http://127.0.0.1:{port}/")
        return page

    yield go
    page.close()
    assert asked and all(url.startswith(("http://127.0.0.1:", "data:")) for url in asked), asked
    assert not [text for text in problems if "status of 4" not in text], problems
    assert not [text for text in problems if "Content Security Policy" in text]


# -- chats -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two chat models that answer differently, with room for long answers."""
    layout = Layout(tmp_path_factory.mktemp("chat") / "project")
    write_tiny_bpe_llama(layout.pretrained)
    config = layout.pretrained / "config.json"
    write_json(config, read_json(config) | {"max_position_embeddings": 4096})
    first = export_untrained(layout, max_new_tokens=12)
    second = first.parent / "other"
    shutil.copytree(first, second)
    described = read_json(second / "textmill.json")
    described["generation"]["repetition_penalty"] = 2.0
    write_json(second / "textmill.json", described)
    write_manifest(second)
    return first, second


@pytest.fixture(scope="module")
def server(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    first, second = models
    arguments = ("--beside", str(second), "--max-new-tokens", str(LONGEST))
    with served(first.parent, tmp_path_factory.mktemp("server") / "log", str(first), *arguments) as running:
        yield running


def columns(page: Page) -> list[Locator]:
    page.locator("#columns > section").first.wait_for()
    return page.locator("#columns > section").all()


def send(page: Page, text: str) -> list[str]:
    """Send a message; return the last answer of each model."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    page.locator("#send:enabled").wait_for()  # disabled from the key on
    return [column.locator("article .text").last.text_content() or "" for column in columns(page)]


def open_parameters(page: Page, **values: Any) -> None:
    page.get_by_text("Parameters", exact=True).click()
    for name, value in values.items():
        page.locator(f"#{name}").fill(str(value))


def api(server: Server, model: Path, messages: list[dict[str, str]], **options: Any) -> str:
    body = {"model": str(model), "messages": messages, **options}
    return str(ask(server.port, "POST", "/v1/chat/completions", body).json()["choices"][0]["message"]["content"])


def test_chat_streams_answers_of_both_models_side_by_side(
    server: Server, models: tuple[Path, Path], visit: Visit
) -> None:
    page = visit(server.port)
    assert [column.locator("h2").text_content() for column in columns(page)] == [str(each) for each in models]
    assert columns(page)[0].locator("header small").text_content() == "instruction tuning · pytorch"
    open_parameters(page, system="thanks", temperature=0.7, top_p=0.9, max_tokens=9, seed=4)
    options = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 9, "seed": 4}
    histories: list[list[dict[str, str]]] = [[{"role": "system", "content": "thanks"}] for _ in models]
    for text in (HOSTILE, "name three colours"):
        answers = send(page, text)
        assert answers[0] != answers[1]
        for model, history, shown in zip(models, histories, answers, strict=True):
            history.append({"role": "user", "content": text})
            assert shown == api(server, model, history, **options)
            history.append({"role": "assistant", "content": shown})
    first = columns(page)[0]
    assert first.locator("article.user .text").first.text_content() == HOSTILE  # a text, no markup
    assert page.title() == "Textmill" and page.locator("article b, article img").count() == 0
    told = first.locator("article small").last.text_content() or ""
    assert told.startswith("9 tokens, ") and " tokens/s · prompt " in told and "cut at the token limit" in told
    page.get_by_role("button", name="New conversation").click()
    assert page.locator("article").count() == 0


@pytest.mark.parametrize("kind", ["curl", "Python"])
def test_copied_program_gives_the_shown_answer(server: Server, visit: Visit, tmp_path: Path, kind: str) -> None:
    page = visit(server.port)
    columns(page)
    open_parameters(page, system="it's", max_tokens=7, schema='{"type": "boolean"}')
    send(page, "who are you")
    shown = send(page, HOSTILE)[1]
    columns(page)[1].get_by_role("button", name=f"Copy as {kind}").click()
    program = page.locator("#code pre").text_content() or ""
    page.get_by_role("button", name="Close").click()
    assert json.loads(shown) in (True, False)
    if kind == "Python":
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.stdout.removesuffix("\n") == shown, done.stderr
        return
    require_package("curl", "/usr/bin/curl")
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == shown


def test_answer_follows_the_schema_and_a_bad_schema_is_told(server: Server, visit: Visit) -> None:
    page = visit(server.port)
    columns(page)
    size = {"type": "integer", "minimum": 0, "maximum": 99}
    schema = {"type": "object", "properties": {"size": size}, "required": ["size"], "additionalProperties": False}
    open_parameters(page, schema=json.dumps(schema), max_tokens=60)
    for answer in send(page, "how big"):
        jsonschema.validate(json.loads(answer), schema)
    page.locator("#schema").fill("{")
    send(page, "how big")
    assert "Error: the JSON schema is not JSON" in (page.locator("#status").text_content() or "")
    page.locator("#schema").fill('{"type": "integer", "minimum": 5, "maximum": 3}')
    assert all("Error: response_format: the schema cannot be followed" in answer for answer in send(page, "how big"))
    assert page.locator("#text").input_value() == "how big"  # nothing typed is lost


def test_stop_ends_the_generation_on_the_server(server: Server, visit: Visit) -> None:
    page = visit(server.port)
    columns(page)
    schema = {"type": "string", "minLength": LONGEST}  # no end before it
    open_parameters(page, schema=json.dumps(schema), max_tokens=LONGEST)
    page.get_by_label("Message", exact=True).fill("who")
    page.get_by_role("button", name="Send").click()
    for column in columns(page):
        column.locator("article .text", has_text='"').last.wait_for()  # the first piece
    assert page.get_by_role("button", name="Send").is_disabled()
    page.get_by_role("button", name="Stop").click()
    page.locator("#send:enabled").wait_for()
    for column in columns(page):
        assert "stopped" in (column.locator("article small").last.text_content() or "")
        assert 1 <= len(column.locator("article .text").last.text_content() or "") < LONGEST
    page.locator("#schema").fill("")
    page.locator("#max_tokens").fill("3")
    end = time.monotonic() + 30
    while any("too many generations" in answer for answer in send(page, "go on")):  # until the places are free again
        assert time.monotonic() < end
    metrics = ask(server.port, "GET", "/metrics").body.decode()
    assert "textmill_requests_in_progress 1.0" in metrics  # this one


def test_server_with_a_token_shows_nothing_before_it(models: tuple[Path, Path], visit: Visit) -> None:
    from playwright.sync_api import expect

    with serving(models[0], token=TOKEN) as port:
        page = visit(port)
        page.get_by_text("This server wants its token.").wait_for()
        assert page.locator("#columns > section").count() == 0 and str(models[0]) not in page.content()
        for given, told in (("wrong" * 5, "The token is wrong."), (TOKEN, "")):
            page.get_by_label("Token of this server").fill(given)
            page.get_by_role("button", name="Connect").click()
            expect(page.locator("#status")).to_have_text(told)
        [answer] = send(page, "who are you")
        assert answer
        columns(page)[0].get_by_role("button", name="Copy as Python").click()
        program = page.locator("#code pre").text_content() or ""
        assert TOKEN not in program + page.url
        assert (
            page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])") == '[{},{},""]'
        )
        given = {**os.environ, "TEXTMILL_TOKEN": TOKEN}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=given)
        assert done.stdout.removesuffix("\n") == answer, done.stderr


def test_page_fits_a_phone_follows_dark_mode_and_names_its_fields(server: Server, visit: Visit) -> None:
    page = visit(server.port)
    columns(page)
    open_parameters(page, max_tokens=12)
    send(page, "unbroken" * 40)
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tops = [column.bounding_box() for column in columns(page)]
    assert tops[0] and tops[1] and tops[0]["x"] == tops[1]["x"] and tops[0]["y"] < tops[1]["y"]  # one below the other
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert light == "rgb(255, 255, 255)" != page.evaluate(background)
    unnamed = "[...document.querySelectorAll('input, textarea, select')].filter(e => !e.labels.length).map(e => e.id)"
    assert page.evaluate(unnamed) == []
    page.locator("#text").focus()
    visited = set()
    for _ in range(20):
        visited.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        page.keyboard.press("Tab")
    assert {"text", "send", "clear", "Parameters", "temperature", "seed", "schema"} <= visited


def test_axe_finds_no_barrier_in_chats_and_forms(server: Server, exported: Callable[[str], Path], visit: Visit) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe, the oracle, is missing").Axe()

    def barriers(page: Page) -> list[tuple[str, str]]:
        found = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            for one in axe.run(page).response["violations"]:
                found += [(f"{scheme} {one['id']}", node["html"]) for node in one["nodes"]]
        return found

    page = visit(server.port)
    columns(page)
    open_parameters(page, max_tokens=3)
    send(page, "who are you")
    assert barriers(page) == []
    columns(page)[0].get_by_role("button", name="Copy as curl").click()
    assert barriers(page) == []
    with serving(exported("text_classification")) as port:
        page = visit(port)
        page.get_by_label("text", exact=True).fill("a dog runs")
        answer_of(page, "Answer and explain")
        assert barriers(page) == []


def test_policy_of_the_page_runs_no_foreign_or_inline_script(server: Server, chromium: BrowserContext) -> None:
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    columns(page)
    attack = """() => new Promise((done) => {
        const told = [];
        document.addEventListener("securitypolicyviolation", (event) => told.push(event.effectiveDirective));
        const inline = document.createElement("script");
        inline.textContent = "document.title = 'hacked'";
        const image = document.createElement("img");
        image.src = "http://192.0.2.1/x.png";
        const box = document.createElement("div");
        box.innerHTML = "<p style='color: red' onclick='1'>x</p>";
        document.body.append(inline, image, box);
        setTimeout(() => done(told.sort()), 300);
    })"""
    told = page.evaluate(attack)
    assert {"img-src", "script-src-elem", "style-src-attr"} <= set(told) and page.title() == "Textmill"
    page.close()


# -- other tasks -----------------------------------------------------------------------------


@contextmanager
def serving(*folders: Path, token: str | None = None, **options: Any) -> Iterator[int]:
    """A server of these models in this process: what a page shows does not depend on it, and it starts faster."""
    settings, metrics = ServeSettings(port=0, **options), ServingMetrics()
    watchers = []
    for folder in folders:
        source = FolderSource(folder)
        watcher = Watcher(source, lambda _: None, metrics, 1.0)  # type: ignore[arg-type,return-value]
        watcher.current = load_model(source.fetch(""), settings.precision, settings.batch_tokens)
        watchers.append(watcher)
    service = Service(settings, watchers[0], metrics, None, *watchers[1:])
    listening = listen(settings.host, settings.port)
    server = DrainingServer(uvicorn.Config(build_application(service, token), log_level="warning"), service.traffic, 5)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda kind: export_untrained_task(kind, tmp_path_factory.mktemp(kind) / "project"))


def predicted(port: int, value: Any) -> dict[str, Any]:
    return dict(ask(port, "POST", "/predict", {"input": value}).json()["output"])


def answer_of(page: Page, button: str = "Answer") -> Locator:
    page.get_by_role("button", name=button, exact=True).click()
    page.locator(".output details:has(pre)").last.wait_for()
    return page.locator(".output").first


def bars(output: Locator) -> dict[str, float]:
    rows = output.locator("tr").all()
    return {
        (row.locator("th").text_content() or "").removesuffix(" ✓"): float(
            row.locator("meter").get_attribute("value") or 0
        )
        for row in rows
    }


def marks(output: Locator) -> list[str]:
    return [str(mark.evaluate("each => each.firstChild.textContent")) for mark in output.locator("mark").all()]


def test_classification_shows_bars_and_what_each_word_adds(exported: Callable[[str], Path], visit: Visit) -> None:
    text = "a <b>dog</b> runs 北京"
    with serving(exported("text_classification"), max_inputs=2) as port:
        page = visit(port)
        page.get_by_role("button", name="Example 1").click()
        assert page.get_by_label("text", exact=True).input_value() == "I love this product"
        page.get_by_label("text", exact=True).fill(text)
        output = answer_of(page, "Answer and explain")
        answer = predicted(port, text)
        assert bars(output) == pytest.approx(answer["probabilities"])
        assert output.locator("th.chosen").text_content() == f"{answer['label']} ✓"
        words = [
            (each.text_content(), float(each.get_attribute("title") or 0))
            for each in output.locator(".words span").all()
        ]
        assert [word for word, _ in words] == ["a", "<b>dog</b>", "runs", "北", "京"]
        assert output.locator(".words").text_content() == text
        for label in (answer["label"], "calm"):
            output.get_by_label("What each word adds to the probability of").select_option(label)
            shown = float(output.locator(".words span").nth(1).get_attribute("title") or 0)
            without = predicted(port, "a runs 北京")["probabilities"][label]
            assert shown == pytest.approx(answer["probabilities"][label] - without, abs=6e-4)
        page.get_by_role("button", name="Copy as Python").click()
        program = page.locator("#code pre").text_content() or ""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert str(answer["label"]) in done.stdout, done.stderr


def test_several_labels_and_numbers_with_their_interval(exported: Callable[[str], Path], visit: Visit) -> None:
    with serving(exported("multi_label_classification")) as port:
        page = visit(port)
        page.get_by_label("text", exact=True).fill("superb film")
        output = answer_of(page, "Answer and explain")
        answer = predicted(port, "superb film")
        assert bars(output) == pytest.approx(answer["probabilities"])
        chosen = [each.text_content() for each in output.locator("th.chosen").all()]
        assert sorted(chosen) == sorted(f"{label} ✓" for label in answer["labels"])
    with serving(exported("regression")) as port:
        page = visit(port)
        page.get_by_label("text", exact=True).fill("superb film")
        output = answer_of(page)
        answer = predicted(port, "superb film")
        told = [f"{answer[name]:.4g}" for name in ("value", "low", "high")]
        assert output.locator("p").first.text_content() == "{} between {} and {}".format(*told)
        assert output.locator(".interval span").bounding_box() and page.locator("#explain").is_hidden()


def test_entities_passages_and_sentences_are_marked_in_the_text(exported: Callable[[str], Path], visit: Visit) -> None:
    text = "\U0001f33e The <i>Empire</i> State Building was opened"  # positions count characters, not units of UTF-16
    with serving(exported("token_classification")) as port:
        page = visit(port)
        page.get_by_label("text", exact=True).fill(text)
        output = answer_of(page)
        entities = predicted(port, text)["entities"]
        assert entities and marks(output) == [entity["text"] for entity in entities]
        assert output.locator("mark small").first.text_content() == entities[0]["label"]
    with serving(exported("question_answering")) as port:
        page = visit(port)
        page.get_by_role("button", name="Example 2").click()
        assert page.get_by_label("question", exact=True).input_value() == "Who owns the mill?"
        context = "\U0001f33e " + page.get_by_label("context", exact=True).input_value()
        page.get_by_label("context", exact=True).fill(context)
        answer = predicted(port, {"question": "Who owns the mill?", "context": context})
        assert answer["answer"] and marks(answer_of(page)) == [answer["answer"]]
    with serving(exported("extractive_summarisation")) as port:
        page = visit(port)
        page.get_by_label("text", exact=True).fill(SENTENCES)
        assert marks(answer_of(page)) == predicted(port, SENTENCES)["sentences"]


def test_pairs_are_compared_and_lines_are_sorted(exported: Callable[[str], Path], visit: Visit) -> None:
    lines = ["the plot", "superb film", "an awful <b>camera</b>"]
    with serving(exported("re_ranking")) as port:
        page = visit(port)
        page.get_by_label("text a", exact=True).fill("superb")
        page.get_by_label("text b", exact=True).fill("\n".join(lines))
        output = answer_of(page)
        scores = {line: predicted(port, {"text_a": "superb", "text_b": line})["score"] for line in lines}
        assert [each.text_content() for each in output.locator("li > span").all()] == sorted(
            lines, key=lambda line: -scores[line]
        )
        page.get_by_label("Each line of text b").uncheck()
        output = answer_of(page)
        page.locator(".output meter").nth(1).wait_for(state="detached")  # the earlier answer is gone
        whole = predicted(port, {"text_a": "superb", "text_b": "\n".join(lines)})["score"]
        assert float(output.locator("meter").get_attribute("value") or 0) == pytest.approx(whole)


def test_text_is_translated_by_two_models_and_an_error_is_told(exported: Callable[[str], Path], visit: Visit) -> None:
    first = exported("translation")
    second = first.parent / "shorter"
    shutil.copytree(first, second)
    described = read_json(second / "textmill.json")
    described["task"]["generation"]["max_new_tokens"] = 5
    write_json(second / "textmill.json", described)
    write_manifest(second)
    with serving(first, second, max_characters=30) as port:
        page = visit(port)
        page.get_by_label("text", exact=True).fill("a dog runs")
        answer_of(page)
        page.locator(".output small", has_text="answered in").nth(1).wait_for()
        shown = [each.text_content() or "" for each in page.locator(".output .large").all()]
        for model, text in zip((first, second), shown, strict=True):
            name = {"X-Textmill-Model": sha256_file(model / "manifest.json"), "Content-Type": "application/json"}
            answer = ask(port, "POST", "/predict", b'{"input": "a dog runs"}', name)
            assert answer.headers["x-textmill-model"] == name["X-Textmill-Model"]
            assert answer.json()["output"]["translation"] == text
        assert len(shown[0]) > len(shown[1])
        wrong = {"X-Textmill-Model": "other", "Content-Type": "application/json"}
        assert ask(port, "POST", "/predict", b'{"input": "a dog runs"}', wrong).status == 404
        page.get_by_label("text", exact=True).fill("a dog runs " * 9)
        page.get_by_role("button", name="Answer", exact=True).click()
        page.get_by_text("Error: input 1 has 99 characters, more than 30").last.wait_for()


def test_language_model_continues_a_text_as_it_is(exported: Callable[[str], Path], visit: Visit) -> None:
    with serving(exported("language_modelling")) as port:
        page = visit(port)
        page.get_by_text("Parameters", exact=True).click()
        assert page.get_by_label("System message").is_hidden() and page.locator("#schema").is_hidden()
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Most tokens").fill("8")
        page.get_by_label("Text to continue").fill("a dog ")
        page.get_by_role("button", name="Continue").click()
        page.locator("article small", has_text="8 tokens").wait_for()
        body = {"prompt": "a dog ", "temperature": 0, "max_tokens": 8}
        text = ask(port, "POST", "/v1/completions", body).json()["choices"][0]["text"]
        assert page.locator("article .text").text_content() == "a dog " + text
