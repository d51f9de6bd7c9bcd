"""The loss: what it averages over, and that neither packs nor padding change it."""

import pytest
import torch
from station import history, recipe
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tunestation.training.batches import Collate, load_rows
from tunestation.training.loss import IGNORE, mean_over_batch, summed_loss
from tunestation.training.order import draw
from tunestation.training.trainer import held_out_loss

PAD = 0
DOCUMENTS = {"short": (5, 2), "middle": (9, 6), "long": (17, 3), "longest": (23, 15)}
"""Tokens, of them labelled, of documents drawn at random."""


@pytest.fixture(scope="module")
def model(station):
    return AutoModelForCausalLM.from_pretrained(station.model, dtype=torch.float32, attn_implementation="sdpa")


@pytest.fixture(scope="module")
def documents():
    generator = torch.Generator().manual_seed(0)
    made = []
    for tokens, labelled in DOCUMENTS.values():
        ids = torch.randint(3, 480, (tokens,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [IGNORE] * (tokens - labelled) + ids[-labelled:], "position_ids": list(range(tokens))})
    return made


def packed(*documents):
    """Rows one behind the other in one row, as `prepare` writes a pack."""
    return {name: [value for document in documents for value in document[name]] for name in documents[0]}


def outputs(model, batch):
    return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)


def gradients(model, rows, micro):
    """Of all weights in one vector, from micro-batches of `micro` rows as training adds them up."""
    batches = [Collate(PAD)(rows[start : start + micro]) for start in range(0, len(rows), micro)]
    items = sum((batch["labels"][:, 1:] != IGNORE).sum() for batch in batches)
    model.zero_grad()
    loss = 0.0
    for batch in batches:
        part = mean_over_batch(outputs(model, batch), batch["labels"], items)
        part.backward()
        loss += part.item()
    return loss, torch.cat([weight.grad.flatten() for weight in model.parameters()])


def test_any_split_into_micro_batches_gives_the_same_loss_and_gradients(model, documents):
    loss, whole = gradients(model, documents, 4)
    for micro in (2, 1):
        other_loss, other = gradients(model, documents, micro)
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert torch.allclose(whole, other, rtol=1e-4, atol=1e-6 * whole.abs().max())


def test_every_labelled_token_of_a_batch_weighs_the_same(model, documents):
    each = []
    for document in documents:
        batch = Collate(PAD)([document])
        targets = batch["labels"][0, 1:]
        losses = functional.cross_entropy(outputs(model, batch).logits[0, :-1], targets, reduction="none", ignore_index=IGNORE)
        each += losses[targets != IGNORE].tolist()
    assert len(each) == sum(labelled for _, labelled in DOCUMENTS.values())
    assert gradients(model, documents, 1)[0] == pytest.approx(sum(each) / len(each), rel=1e-5)


@torch.no_grad()
def test_documents_in_a_pack_see_nothing_of_each_other(model, documents):
    together = outputs(model, Collate(PAD)([packed(*documents)])).logits[0]
    alone = torch.cat([outputs(model, Collate(PAD)([document])).logits[0] for document in documents])
    assert (together - alone).abs().max() < 1e-5
    joined = {**packed(*documents), "position_ids": list(range(len(alone)))}
    assert (outputs(model, Collate(PAD)([joined])).logits[0] - alone).abs().max() > 0.1, "this model could not tell"


@torch.no_grad()
def test_padding_changes_neither_answers_nor_loss(model, documents):
    rows = [documents[0], packed(documents[1], documents[2])]
    batch = Collate(PAD)(rows)
    together = outputs(model, batch)
    assert batch["input_ids"].shape == (2, 26)
    for index, row in enumerate(rows):
        alone = outputs(model, Collate(PAD)([row])).logits[0]
        assert (together.logits[index, : len(alone)] - alone).abs().max() < 1e-5
    alone = sum(summed_loss(outputs(model, Collate(PAD)([row])).logits, torch.tensor([row["labels"]])) for row in rows)
    assert summed_loss(together.logits, batch["labels"]).item() == pytest.approx(alone.item(), rel=1e-6)


@torch.no_grad()
def test_the_held_out_loss_is_the_mean_over_tokens_not_over_rows(model, documents):
    sums, counts = [], []
    for document in documents:
        batch = Collate(PAD)([document])
        sums.append(summed_loss(outputs(model, batch).logits, batch["labels"]).item())
        counts.append((batch["labels"][:, 1:] != IGNORE).sum().item())
    model.train()
    found = held_out_loss(model, documents, Collate(PAD), torch.device("cpu"))
    assert model.training
    assert found == pytest.approx(sum(sums) / sum(counts), rel=1e-6)
    assert found != pytest.approx(sum(a / b for a, b in zip(sums, counts, strict=True)) / len(sums), rel=1e-3)


@pytest.fixture(scope="module")
def first_steps(station):
    """Micro batch size -> (loss, gradient norm) of the first step under DeepSpeed; rows are not packed, so that they differ."""
    found = {}
    for micro in (1, 2, 4):
        name = f"micro-{micro}"
        settings = {"method": "full", "epochs": 0.5, "max_tokens": 64, "packing": False, "global_batch_size": 4, "learning_rate": 1e-5}
        station.write(recipe(name=name, train=settings, evaluate={"fraction": 0, "prompts": []}, runtime={"micro_batch_size": micro}))
        trained = station.make("train", name=name)
        found[micro] = (history(trained, "loss")[1], history(trained, "grad_norm")[1])
    return found


def test_under_deepspeed_the_split_into_micro_batches_changes_no_step(first_steps):
    for micro in (2, 4):
        assert first_steps[micro] == pytest.approx(first_steps[1], rel=0.01)


def test_deepspeed_steps_along_the_gradient_of_the_mean_over_labelled_tokens(station, first_steps):
    rows = load_rows(station.make("prepare", name="micro-1") / "train")
    first = [rows[visit] for visit in draw(len(rows), 0.5, 4, 42).visits[:4]]
    assert len({sum(label != IGNORE for label in row["labels"]) for row in first}) > 1, "rows of one length cannot tell"
    model = AutoModelForCausalLM.from_pretrained(station.model, dtype=torch.float32, attn_implementation="sdpa")
    batch = Collate(PAD)(first)
    logits, targets = outputs(model, batch).logits[:, :-1], batch["labels"][:, 1:]
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    loss.backward()
    norm = torch.cat([weight.grad.flatten() for weight in model.parameters()]).norm()
    assert first_steps[1] == pytest.approx((loss.item(), norm.item()), rel=0.02)
