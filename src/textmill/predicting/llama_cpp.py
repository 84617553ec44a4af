"""Continue prompts with llama.cpp: a GGUF file of an exported language model, on CPUs.

llama.cpp computes the requests of several threads together (continuous batching). Prompts are rendered and
tokenised as for PyTorch, so that both engines read the same tokens.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from textmill.config.sections.generation import GenerationConfig
from textmill.data.tokenizing import load_tokenizer
from textmill.errors import UserError
from textmill.predicting.exported import ExportedModel
from textmill.predicting.text_continuer import Piece, TextContinuer, TokenScore

PARALLEL = 16
"""Generations that are computed together."""
_MOST_CONTEXT = 2048
"""Positions of each of them at most: keys and values are reserved for all."""
_FORCE = 1e6
"""A bias that makes any token the likeliest; the log-likelihoods told are those before it."""


class LlamaCpp:
    """A GGUF file that llama.cpp has loaded.

    Args:
        path: The file.
        parallel: Sequences that are computed together.
        context: Positions of each.
        threads: Threads that compute; None for $OMP_NUM_THREADS, else one for each core. More threads than free cores
            make each token many times as slow, since they wait for each other.

    Raises:
        UserError: The package `xllamacpp` is missing, or llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, parallel: int, context: int, threads: int | None = None) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            fix = "Run `pip install textmill[llama]`, or choose the engine pytorch"
            raise UserError("the engine llama_cpp needs the package xllamacpp", fix=fix) from error
        threads = threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        self._secret = secrets.token_hex(32)
        parameters: Any = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_parallel, parameters.n_ctx = parallel, parallel * context
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.n_gpu_layers = 0
        parameters.verbosity = -1
        parameters.n_threads_http = 1
        parameters.cache_ram_mib = 0
        # The library also listens on a free port of loopback; a secret closes it to others
        parameters.api_keys = [self._secret]
        try:
            self._server: Any = xllamacpp.Server(parameters)
        except Exception as error:  # of the library, which raises any kind
            raise UserError("llama.cpp cannot load this file", where=str(path), fix="Export the model again") from error
        # Its loop answers from now on: the library waits forever for the end of one that had not yet begun
        for _ in self.complete({"prompt": [0], "n_predict": 1}):
            pass

    def complete(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield llama.cpp's records of a completion; closing the iterator ends the computation.

        Raises:
            UserError: llama.cpp refuses the request.
        """
        records: queue.SimpleQueue[Any] = queue.SimpleQueue()
        closed = threading.Event()

        def receive(record: Any) -> bool:
            records.put(record)
            return closed.is_set()

        def run() -> None:
            try:
                self._server.handle_completions({**request, "stream": True}, receive)
            except BaseException as error:
                records.put(error)
            records.put(None)

        threading.Thread(target=run, name="llama.cpp", daemon=True).start()
        try:
            while (record := records.get()) is not None:
                if isinstance(record, BaseException):
                    raise record
                if "error" in record:
                    raise UserError(f"llama.cpp: {record['error']['message']}")
                yield record
        finally:
            closed.set()

    def greedy(self, prompt: Sequence[int], new: int) -> list[int]:
        """Return the tokens of a greedy continuation, with the one that ends it."""
        request = {"prompt": list(prompt), "n_predict": new, "temperature": 0, "return_tokens": True}
        return list(self._post("/completion", [request])[0]["tokens"])

    def log_likelihoods(self, ids: Sequence[int], slot: int) -> list[float]:
        """Return the log-likelihood in nats of each token but the first, given those before it.

        Each token must be of whole characters: llama.cpp tells no likelihood of others.
        """
        values = []
        for place in range(1, len(ids)):
            request = {"prompt": list(ids[:place]), "n_predict": 1, "temperature": 0, "n_probs": 1, "id_slot": slot}
            request |= {"logit_bias": [[ids[place], _FORCE]], "cache_prompt": True}
            [entry] = [entry for record in self.complete(request) for entry in scored_tokens(record)]
            assert entry["id"] == ids[place], "llama.cpp did not take the forced token"
            values.append(float(entry["logprob"]))
        return values

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens that llama.cpp's own tokenizer makes of each text."""
        options = {"add_special": False, "parse_special": True}
        return [
            answer["tokens"] for answer in self._post("/tokenize", [{"content": text, **options} for text in texts])
        ]

    def render(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
        """Return the prompts that llama.cpp's own reading of the chat template makes of conversations."""
        bodies = [{"messages": list(messages)} for messages in conversations]
        return [answer["prompt"] for answer in self._post("/apply-template", bodies)]

    def _post(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        connection = HTTPConnection(str(self._server.listening_address).removeprefix("http://"), timeout=600)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._secret}"}
        answers = []
        for body in bodies:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200:
                raise UserError(f"llama.cpp: {answer['error']['message']}")
            answers.append(answer)
        connection.close()
        return answers


def scored_tokens(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tokens of a record with `id`, `token`, `logprob` and `top_logprobs`."""
    return [entry for choice in record["choices"] for entry in (choice["logprobs"] or {}).get("content", [])]


class LlamaCppContinuer(TextContinuer):
    """A `TextContinuer` that computes with llama.cpp; it has no PyTorch network and no `outputs`."""

    engine_name = "llama.cpp"
    concurrent = PARALLEL

    def __init__(self, exported: ExportedModel, folder: Path, file: str, threads: int | None = None) -> None:
        configuration = json.loads((folder / "transformers/config.json").read_text(encoding="utf-8"))
        context = min(int(configuration["max_position_embeddings"]), _MOST_CONTEXT)
        model: Any = None  # llama.cpp has the weights
        super().__init__(exported, load_tokenizer(folder), model, context)
        self.engine = LlamaCpp(folder / file, PARALLEL, self.context, threads)

    def generate(self, prompts: Sequence[Any], options: GenerationConfig) -> list[dict[str, Any]]:
        """Continue natural inputs, one after the other; return `text` and the number of `tokens` for each."""
        found = [list(self.pieces(self.encode_prompt(prompt), options)) for prompt in prompts]
        return [
            {"text": "".join(piece.text for piece in pieces), "tokens": sum(piece.tokens for piece in pieces)}
            for pieces in found
        ]

    def pieces(
        self,
        prompt: Sequence[int],
        options: GenerationConfig,
        likeliest: int | None = None,
        grammar: str | None = None,
    ) -> Iterator[Piece]:
        """Yield the continuation of tokens in pieces; see `TextContinuer.pieces`.

        A token that ends within a character has no score.
        """
        finish = "stop"
        records = self.engine.complete(self._request(prompt, options, likeliest, grammar))
        for told, record in enumerate(records):
            scores = [_score(entry, likeliest) for entry in scored_tokens(record)] if likeliest is not None else []
            text = "".join(choice["text"] for choice in record["choices"])
            finish = next((choice["finish_reason"] for choice in record["choices"]), None) or finish
            if usage := record.get("usage"):
                # An end token is counted there, and is not part of the text
                yield Piece(text, max(0, usage["completion_tokens"] - told - (finish == "stop")), scores, finish)
                return
            yield Piece(text, 1, scores)

    def _request(
        self, prompt: Sequence[int], options: GenerationConfig, likeliest: int | None, grammar: str | None
    ) -> dict[str, Any]:
        if options.beams > 1:
            raise UserError("the engine llama_cpp has no beam search", where="beams", fix="Use 1, or engine pytorch")
        return {
            "prompt": list(prompt) or [self._end],
            "n_predict": max(1, min(options.max_new_tokens, self.context - len(prompt))),
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "temperature": options.temperature,
            "top_k": options.top_k or 0,
            "top_p": 1.0 if options.top_p is None else options.top_p,
            "min_p": options.min_p or 0.0,
            "repeat_penalty": options.repetition_penalty,
            "repeat_last_n": self.context,
            "seed": options.seed % 2**32,
            "stop": list(options.stop),
            "n_probs": 0 if likeliest is None else max(1, likeliest),
            **({} if grammar is None else {"grammar": grammar}),
        }


def _score(entry: Mapping[str, Any], likeliest: int | None) -> TokenScore:
    others = [(top["token"], float(top["logprob"])) for top in entry["top_logprobs"][: likeliest or 0]]
    return TokenScore(entry["token"], float(entry["logprob"]), others)
