"""Answers located in the rendering of real chat templates; TRL's masks are the oracle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from textmill.text import chat

SPEC = importlib.util.find_spec("trl")
FOLDER = Path(SPEC.origin).parent / "chat_templates" if SPEC and SPEC.origin else Path("/nowhere")
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
SPECIAL = {"bos_token": "<BOS>", "eos_token": "<EOS>", "pad_token": "<PAD>", "unk_token": "<UNK>"}
IMAGES = {"llava_next", "llava_next_training"}  # messages that are lists of texts and images
PREFIXES = {
    # Here TRL also learns what the prompt for an answer already has
    "deepseek_r1_distill": "<\uff5cAssistant\uff5c>",
    "deepseekv3": "<\uff5cAssistant\uff5c>",
    "gptoss": "<|start|>assistant",
    "muse_glimmer": "<|start|>assistant",
    "qwen2_5": "\n",
}
REWRITING = {"qwen3": 1, "qwen3_5_nothink": 1, "qwen3_5_think": 1, "qwen3_6": 1, "deepseek_r1_distill": 2}
"""Templates that drop thoughts, and the number of conversations without any; TRL trains on a text that keeps them."""
OPEN_END = {"glm4moe"}  # its last answer has no end; TRL's text appends the next `<|user|>`
QUESTION = {"role": "user", "content": "Which? "}
ANSWERS = ("Café «1», 你好.", "2 + 2 = 4\n\n- x")
SHORT = {"role": "assistant", "content": ANSWERS[0]}
CONVERSATIONS = [
    [QUESTION, SHORT],
    [QUESTION, SHORT, QUESTION, SHORT, QUESTION, {"role": "assistant", "content": ANSWERS[1]}],
    [QUESTION, {"role": "assistant", "content": f"<think>\nWell, {ANSWERS[1]}\n</think>\n\n{ANSWERS[0]}"}],
]

pytestmark = pytest.mark.skipif(SPEC is None, reason="the package trl, the oracle, is missing")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the special tokens of all templates."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE({sign: number for number, sign in enumerate(sorted(alphabet))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pieces = pre_tokenizers.Split(Regex(r"<[^<>\s{}]+>"), "isolated")
    found = {
        piece
        for name in TEMPLATES
        for piece, _ in pieces.pre_tokenize_str((FOLDER / f"{name}.jinja").read_text())
        if piece.startswith(("<|", "<\uff5c", "<end_of", "<start_of", "<turn"))
    }
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in sorted(found | set(SPECIAL.values()))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def trl_mask(tokenizer: PreTrainedTokenizerFast, template: str, messages: Any) -> tuple[list[int], list[int]]:
    """Return ids and mask as TRL computes them for `assistant_only_loss`."""
    tokenizer.chat_template = template
    found: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return found["input_ids"], found["assistant_masks"]


def own_mask(tokenizer: PreTrainedTokenizerFast, template: str, messages: Any) -> tuple[list[int], list[int]]:
    backend = tokenizer.backend_tokenizer
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    ends = sorted({SPECIAL["eos_token"], *chat.ends_of_turn(template, SPECIAL)} & known)
    text, spans = chat.answer_spans(messages, template, SPECIAL, ends)
    encoding = backend.encode(text, add_special_tokens=False)
    return encoding.ids, chat.tokens_within(encoding.offsets, spans)


def accepts(template: str, messages: Any) -> bool:
    try:
        return bool(chat.render(messages, template, SPECIAL, ask=False))
    except Exception:
        return False


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in IMAGES])
def test_mask_of_template_with_marks_is_that_of_trl(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    template = (FOLDER / f"{name}.jinja").read_text()
    if "generation %}" not in template:
        template = (FOLDER / f"{name}_training.jinja").read_text() if f"{name}_training" in TEMPLATES else ""
    for messages in CONVERSATIONS if template else []:
        ids, mask = trl_mask(tokenizer, template, messages)
        assert any(mask)
        assert own_mask(tokenizer, template, messages) == (ids, mask)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if f"{name}_training" in TEMPLATES and name not in IMAGES])
def test_mask_of_template_without_marks_is_that_of_trl(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """TRL replaces each template that it knows by one with marks: the same answers must be learned."""
    template, marked = ((FOLDER / f"{name}{end}.jinja").read_text() for end in ("", "_training"))
    for messages in CONVERSATIONS[: REWRITING.get(name)]:
        ids, mask = own_mask(tokenizer, template, messages)
        expected_ids, expected = trl_mask(tokenizer, marked, messages)
        if name in OPEN_END:
            assert tokenizer.decode(expected_ids[-1:]) == "<|user|>"
            expected_ids, expected = expected_ids[:-1], expected[:-1]
        assert ids == expected_ids
        prefix = tokenizer.backend_tokenizer.encode(PREFIXES.get(name, ""), add_special_tokens=False).ids
        starts = [at for at, learned in enumerate(expected) if learned and (at == 0 or not expected[at - 1])]
        for start in starts if prefix else []:
            assert ids[start : start + len(prefix)] == prefix
            expected[start : start + len(prefix)] = [0] * len(prefix)
        assert mask == expected, [tokenizer.decode([i]) for i, a, b in zip(ids, mask, expected, strict=True) if a != b]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"])
def test_earlier_thoughts_that_a_template_drops_are_not_learned(name: str) -> None:
    template = (FOLDER / f"{name}.jinja").read_text()
    thinking = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}
    text, spans = chat.answer_spans([QUESTION, thinking, QUESTION, thinking], template, SPECIAL, ["<|im_end|>"])
    assert [text[start:end] for start, end in spans] == [
        "yes<|im_end|>\n",
        "<think>\nhm\n</think>\n\nyes<|im_end|>\n",
    ]


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_1", "glm4moe", "gemma4_v5", "nemotron_3_nano"])
def test_calls_of_tools_are_learned_and_their_results_are_not(name: str) -> None:
    template = (FOLDER / f"{name}.jinja").read_text()
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    messages = [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12:34", "name": "clock"},
        {"role": "assistant", "content": "It is noon."},
    ]
    text, spans = chat.answer_spans(messages, template, SPECIAL, ["<EOS>", "<|im_end|>"])
    called, answered = (text[start:end] for start, end in spans)
    assert "clock" in called and "UTC" in called and "12:34" not in called and "noon" not in called
    assert answered.lstrip().startswith(("It is noon.", "<think>")) and "12:34" not in answered
    assert "It is noon." in answered


def test_pieces_of_a_tokenizer_that_marks_word_starts_are_those_of_the_whole_text() -> None:
    """Metaspace: a text encoded in parts has a mark of a word's start at each part."""
    backend = Tokenizer(models.BPE({sign: n for n, sign in enumerate(["▁", *"abcdeQ:AU\n"])}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.add_special_tokens([AddedToken("<EOS>", normalized=False)])
    template = "{% for m in messages %}{{ m.role[0] | upper }}: {{ m.content }}"
    template += "{% if m.role == 'assistant' %}<EOS>{% endif %}{% endfor %}"
    template += "{% if add_generation_prompt %}A:{% endif %}"
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    text, spans = chat.answer_spans(messages, template, SPECIAL, ["<EOS>"])
    assert (text, [text[start:end] for start, end in spans]) == ("U: abA: cd<EOS>", [" cd<EOS>"])
    encoding = backend.encode(text, add_special_tokens=False)
    mask = chat.tokens_within(encoding.offsets, spans)
    assert [token for token, learned in zip(encoding.tokens, mask, strict=True) if learned] == ["▁", "c", "d", "<EOS>"]
