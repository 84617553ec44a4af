"""Text classification as the stages ask it, without a network."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from textmill.errors import UserError
from textmill.evaluation.evaluator import evaluator_of
from textmill.tasks.text_classification import TextClassification

STATE = {"labels": ["bad", "good", "so-so"]}


@pytest.fixture
def task() -> TextClassification:
    return TextClassification.from_options()


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2} | {chr(ord("a") + i): 3 + i for i in range(26)}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def frame(texts, labels) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"r{i}" for i in range(len(texts))], "text": texts, "label": labels})


def with_shares(*records):
    return frame(["x"] * len(records), ["good"] * len(records)).assign(label_shares=list(records))


# -- fit and check -----------------------------------------------------------------------------


def test_labels_are_learned_from_all_frames_and_sorted(task):
    parts = [frame(["x"], ["good"]), frame(["y", "z"], ["bad", "so-so"])]
    assert task.fit(parts) == STATE


def test_configured_labels_keep_their_order():
    task = TextClassification.from_options(labels=["good", "bad"])
    assert task.fit([frame(["x", "y"], ["bad", "good"])]) == {"labels": ["good", "bad"]}


@pytest.mark.parametrize("labels", [["good", "good"], [None, None]])
def test_fewer_than_two_labels_cannot_be_trained_on(task, labels):
    with pytest.raises(UserError, match=r"one label only, 'good'|no label"):
        task.fit([frame(["x", "y"], labels)])


def test_whole_numbers_are_labels_even_beside_a_null(task):
    numbers = frame(["x", "y", "z"], [0, 1, None])
    assert numbers["label"].dtype == float
    assert task.fit([numbers]) == {"labels": ["0", "1"]}


def test_every_unusable_row_is_rejected_once_with_its_reason(task):
    rows = frame(["fine", None, "  ", "fine", "fine", None], ["good", "bad", "bad", None, "meh", None])
    before = {(reject.row, reject.column, reject.reason) for reject in task.check(rows, None)}
    missing = {
        (1, "text", "is missing"),
        (2, "text", "is empty"),
        (3, "label", "is missing"),
        (5, "text", "is missing"),
    }
    assert before == missing
    after = task.check(rows.set_index(pd.Index(list("uvwxyz"))), STATE)
    assert {reject.row for reject in after} == {1, 2, 3, 4, 5}
    assert after[3].reason == "'meh' is none of the labels bad, good, so-so"


def test_unusable_shares_are_rejected_with_their_reason(task):
    rows = with_shares('{"good": 3, "bad": 1}', None, "[1]", '{"meh": 1}', '{"good": 0}', '{"good": 2, "bad": -1}', "{")
    reasons = {reject.row: reject.reason for reject in task.check(rows, STATE)}
    assert sorted(reasons) == [2, 3, 4, 5, 6]
    assert reasons[2] == "'[1]' is not a JSON record of a weight for each label"
    assert reasons[3] == "'meh' is not one of the labels"
    assert "has a negative weight, or no positive one" in reasons[4]
    both = rows.assign(text="")
    assert sorted(reject.row for reject in task.check(both, STATE)) == [0, 1, 2, 3, 4, 5, 6]


def test_r_drop_adds_the_divergence_of_two_passes_in_training_only(task, tokenizer):
    import torch
    from torch import nn

    class Noisy(nn.Module):
        def forward(self, input_ids, attention_mask):
            self.rows = len(input_ids)
            return {"logits": torch.arange(3.0 * len(input_ids)).reshape(-1, 3).square() / 10}

    network = Noisy()
    batch = task.collate(task.encode(frame(["x", "y"], ["good", "bad"]), tokenizer, STATE, 8))
    regular = TextClassification.from_options(r_drop=0.5)
    one, two = (made.loss(network.train(), batch).loss for made in (task, regular))
    assert network.rows == 4
    logs = network(torch.zeros(4), None)["logits"].log_softmax(dim=1)
    kl = nn.functional.kl_div
    first, second = logs[:2], logs[2:]
    divergence = (
        kl(first, second, log_target=True, reduction="batchmean")
        + kl(second, first, log_target=True, reduction="batchmean")
    ) / 2
    entropy = nn.functional.nll_loss(logs, torch.tensor([1, 0, 1, 0]))
    assert two.item() == pytest.approx((entropy + 0.5 * divergence).item(), rel=1e-6)
    assert one.item() != pytest.approx(two.item())
    regular.loss(network.eval(), batch)
    assert network.rows == 2


def test_training_aims_at_the_shares_where_there_are_some(task, tokenizer):
    import torch

    rows = with_shares('{"good": 3, "bad": 1}', None)
    columns = task.encode(rows, tokenizer, STATE, 8)
    assert columns["label_probabilities"] == [[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]]
    batch = task.collate(columns)
    logits = torch.tensor([[0.3, 0.1, -0.2], [0.0, 1.0, 0.5]])
    loss = task.loss(lambda **_: {"logits": logits}, batch).loss
    logs = logits.log_softmax(dim=1)
    expected = -(0.25 * logs[0, 0] + 0.75 * logs[0, 1] + logs[1, 1]) / 2
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_configured_labels_are_checked_before_fit():
    task = TextClassification.from_options(labels=["bad", "good"])
    assert [reject.row for reject in task.check(frame(["a", "b"], ["bad", "meh"]), None)] == [1]
    assert task.check(frame(["a", "b"], ["bad", "good"]), None) == []


@pytest.mark.parametrize(
    "options", [{"labels": ["a"]}, {"labels": ["a", "a"]}, {"label_smoothing": 1.0}, {"lables": []}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        TextClassification.from_options(**options)


# -- encode and collate ------------------------------------------------------------------------


def test_long_texts_are_cut_as_the_tokenizer_would(task, tokenizer):
    texts = ["a b c d e f g", "a b", "a b c d"]
    columns = task.encode(frame(texts, ["good", "bad", "so-so"]), tokenizer, STATE, 5)
    assert columns["label_id"] == [1, 0, 2]
    assert columns["length"] == [5, 4, 5]
    assert tokenizer.truncation is None, "the caller's tokenizer is left as it was"
    from tokenizers import Tokenizer

    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(5)
    assert columns["input_ids"] == [encoding.ids for encoding in cutting.encode_batch(texts)]


def test_texts_without_label_can_be_encoded(task, tokenizer):
    assert "label_id" not in task.encode(pd.DataFrame({"text": ["a"]}), tokenizer, STATE, 8)


def test_collate_pads_to_the_longest_row(task):
    batch = task.collate({"input_ids": [[5, 6, 7], [8]], "label_id": [2, 0], "length": [3, 1]})
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["label_id"].tolist() == [2, 0]


def test_loss_is_smoothed_cross_entropy():
    import torch

    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]])

    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return {"logits": logits}

    task = TextClassification.from_options(label_smoothing=0.1)
    found = task.loss(Fixed(), task.collate({"input_ids": [[1], [1]], "label_id": [0, 2]}))
    target = torch.full((2, 3), 0.1 / 3) + 0.9 * torch.nn.functional.one_hot(torch.tensor([0, 2]), 3)
    wanted = -(target * logits.log_softmax(1)).sum(1).mean()
    assert float(found.loss) == pytest.approx(float(wanted), rel=1e-6)
    assert found.outputs["logits"] is logits


# -- figures and predictions -------------------------------------------------------------------


def test_validation_metrics_equal_scikit_learn(task):
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    chooser = np.random.default_rng(0)
    logits, actual = chooser.normal(size=(200, 3)).astype("f4"), chooser.integers(0, 3, 200)
    found = task.validation_metrics({"logits": logits}, {"label_id": actual.tolist()}, STATE)
    probabilities = np.exp(logits.astype(float))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    assert found == pytest.approx(
        {
            "weighted_f1": f1_score(actual, predicted, average="weighted"),
            "macro_f1": f1_score(actual, predicted, average="macro"),
            "accuracy": accuracy_score(actual, predicted),
            "loss": log_loss(actual, probabilities),
        }
    )
    assert task.monitor.removeprefix("validation/") in found


def test_predictions_and_errors(task):
    logits = np.array([[4, 0, 0], [0, 3, 0], [0, 0, 1], [9, 0, 0]], "f4")
    rows = frame(["w", "x", "y", "z"], ["bad", "bad", "good", "so-so"])
    found = evaluator_of(task).predictions({"logits": logits}, rows, STATE)
    assert found["prediction"].tolist() == ["bad", "good", "so-so", "bad"]
    assert found["probability_good"].iloc[1] == found["confidence"].iloc[1] == pytest.approx(0.909443, abs=1e-6)
    assert evaluator_of(task).report(found, STATE).errors["text"].tolist() == ["z", "x", "y"], (
        "least probable truth first"
    )
    assert len(evaluator_of(task).report(found.head(1), STATE).errors) == 0


def test_decode_gives_plain_probabilities(task):
    import json

    (record,) = task.answers({"logits": np.array([[0, 2, 0]], "f4")}, {}, {}, STATE)
    assert record["label"] == "good"
    assert record["probability"] == record["probabilities"]["good"] == pytest.approx(0.786986, abs=1e-6)
    assert sum(record["probabilities"].values()) == pytest.approx(1)
    json.dumps(record)


# -- inputs ------------------------------------------------------------------------------------


def test_strings_and_records_are_inputs(task):
    assert task.parse_inputs(["a", {"text": "b", "id": 3}])["text"].tolist() == ["a", "b"]
    assert task.parse_inputs(task.example_inputs())["text"].str.len().min() > 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "input 2: the text is empty"),
        (" \n", "input 2: the text is empty"),
        ({"txt": "x"}, r"input 2: there is no text among \['txt'\]"),
        ({"text": ""}, "input 2: the text is empty"),
        (3, "input 2: neither a text nor a record: '3'"),
        (None, "input 2: neither a text nor a record: 'None'"),
        (float("nan"), "input 2: neither a text nor a record: 'nan'"),
    ],
)
def test_bad_inputs_are_told_by_number(task, value, message):
    with pytest.raises(UserError, match=message):
        task.parse_inputs(["fine", value])


def test_no_input_at_all_is_refused(task):
    with pytest.raises(UserError, match="no input"):
        task.parse_inputs([])


# -- baselines ---------------------------------------------------------------------------------


def words_frame(rows: int, seed: int) -> pd.DataFrame:
    chooser = np.random.default_rng(seed)
    good = chooser.random(rows) < 0.6
    words = [f"the film is {'lovely' if g else 'dreadful'} {chooser.choice(list('abcdef'))}" for g in good]
    return pd.DataFrame({"id": [f"{seed}-{i}" for i in range(rows)], "text": words, "words": words}).assign(
        label=np.where(good, "good", "bad")
    )


def test_baselines_learn_from_words(task):
    train, validation, test = (words_frame(rows, seed) for rows, seed in ((80, 0), (20, 1), (40, 2)))
    fitted = evaluator_of(task).baselines(train, validation, STATE, {"strengths": [0.1, 10.0]}, 0)
    majority = fitted["majority"](test)
    assert set(majority["prediction"]) == {"good"}
    assert majority["confidence"].iloc[0] == pytest.approx((train["label"] == "good").mean())
    linear = fitted["tfidf_logistic_regression"](test)
    assert (linear["prediction"] == test["label"]).all()
    assert (linear["probability_so-so"] == 0).all(), "a label without training rows gets no probability"
    assert linear["id"].tolist() == test["id"].tolist()


def test_strength_is_chosen_on_validation(task):
    train, validation = words_frame(80, 0), words_frame(20, 1)
    hopeless, fine = 1e-9, 10.0  # the first leaves only the majority
    for options in ([hopeless, fine], [fine, hopeless]):
        linear = evaluator_of(task).baselines(train, validation, STATE, {"strengths": options}, 0)[
            "tfidf_logistic_regression"
        ]
        assert linear(validation)["prediction"].nunique() == 2


def test_baseline_options_are_checked(task):
    with pytest.raises(UserError, match=r"evaluate\.baselines\.strenghts.*The options are models, strengths"):
        evaluator_of(task).baselines(words_frame(8, 0), words_frame(8, 1), STATE, {"strenghts": [1]}, 0)
    with pytest.raises(UserError, match="has no words"):
        evaluator_of(task).baselines(words_frame(8, 0).assign(words="!"), words_frame(8, 1), STATE, {}, 0)


def test_serving_and_preparing_do_without_torch():
    program = """
        import sys
        import numpy as np, pandas as pd
        from textmill.tasks.text_classification import TextClassification
        task = TextClassification.from_options()
        rows = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
        state = task.fit([rows]); task.check(rows, state); task.parse_inputs(["a"])
        task.answers({"logits": np.zeros((1, 2), "f4")}, {}, {}, state)
        assert not {"torch", "transformers", "sklearn", "matplotlib"} & set(sys.modules), "heavy"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


@pytest.mark.parametrize("balance", ["class_weights", "logit_adjustment"])
def test_balanced_loss_is_that_of_the_paper_in_training_only(balance: str) -> None:
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    from textmill.tasks.text_classification import TextClassification

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([[2.0, 0.5], [0.3, 0.1], [1.0, 3.0]]))
            self.register_buffer("label_shares", torch.tensor([0.9, 0.1]), persistent=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.logits}

    task = TextClassification.from_options(balance=balance, balance_strength=0.5)
    frames = [pd.DataFrame({"label": ["a"] * 9 + ["b"]})]
    assert task.fit(frames) == {"labels": ["a", "b"], "label_shares": [0.9, 0.1]}
    assert TextClassification.from_options().fit(frames) == {"labels": ["a", "b"]}
    network, target = Fixed(), torch.tensor([0, 1, 1])
    batch = {"input_ids": torch.ones(3, 1), "attention_mask": torch.ones(3, 1), "label_id": target}
    each = cross_entropy(network.logits, target, reduction="none")
    if balance == "class_weights":
        weights = torch.tensor([0.9, 0.1]) ** -0.5
        expected = (each * (weights / (0.9 * weights[0] + 0.1 * weights[1]))[target]).mean()
    else:
        expected = cross_entropy(network.logits + 0.5 * torch.tensor([0.9, 0.1]).log(), target)
    torch.testing.assert_close(task.loss(network, batch).loss, expected)
    shares = {"label_probabilities": nn.functional.one_hot(target, 2).float()}
    torch.testing.assert_close(task.loss(network, batch | shares).loss, expected)
    torch.testing.assert_close(task.loss(network.eval(), batch).loss, each.mean())


def test_offsets_are_added_to_the_biases_of_the_best_weights() -> None:
    import torch

    from textmill.tasks.text_classification import TextClassification

    task = TextClassification.from_options(offsets=True)
    logits = np.array([[2.0, 1.5], [2.0, 1.6], [3.0, 0.0], [2.5, 0.0]], np.float32)
    found = task.validation_metrics({"logits": logits}, {"label_id": [1, 1, 0, 0]}, {"labels": ["a", "b"]})
    assert found["macro_f1"] == 1
    weights = {"output.bias": torch.zeros(2)}
    bias = task.calibrate_weights(weights, found)["output.bias"]
    assert bias.tolist() == [found["offset_0"], found["offset_1"]]
    assert ((logits + bias.numpy()).argmax(axis=1) == [1, 1, 0, 0]).all()
    assert task.calibrates and not TextClassification.from_options().calibrates
