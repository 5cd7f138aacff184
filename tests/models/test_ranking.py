"""Ranking measures against a hand count, and against torchmetrics where its definition is the same."""

import math

import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_recall

from models.ranking import ndcg_at, recall_at

SCORES = torch.tensor([[0.5, 0.9, 0.1, 0.7, 0.3], [-math.inf, 1.0, 2.0, 3.0, 4.0]])
TARGETS = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 0, 1]])


def test_a_hand_count():
    """The first user's items in order: 1, 3, 0, 4, 2; the second's: 4, 3, 2, 1."""
    assert recall_at(2, SCORES, TARGETS).tolist() == [1 / 2, 1 / 2]  # at most two of three can be found
    assert recall_at(4, SCORES, TARGETS).tolist() == pytest.approx([2 / 3, 1.0])
    best = [1 + 1 / math.log2(3) + 1 / 2, 1 + 1 / math.log2(3)]
    found = [1 + 1 / 2, 1 + 1 / math.log2(5)]
    assert ndcg_at(4, SCORES, TARGETS).tolist() == pytest.approx([f / b for f, b in zip(found, best, strict=True)])
    assert ndcg_at(1, SCORES, TARGETS).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_torchmetrics(k):
    torch.manual_seed(0)
    scores, targets = torch.rand(30, 60), (torch.rand(30, 60) < 0.2).int()
    for row, (of, wanted) in enumerate(zip(scores, targets, strict=True)):
        assert ndcg_at(k, scores, targets)[row].item() == pytest.approx(
            retrieval_normalized_dcg(of, wanted, top_k=k).item(), abs=1e-6
        )
        # Theirs is of all targets, and takes no item whose score is not positive.
        share = min(k, int(wanted.sum())) / int(wanted.sum())
        recall = retrieval_recall(of, wanted, top_k=k).item()
        assert recall_at(k, scores, targets)[row].item() * share == pytest.approx(recall, abs=1e-6)


@pytest.mark.parametrize("measure", [recall_at, ndcg_at])
def test_what_cannot_be_ranked_is_refused(measure):
    with pytest.raises(ValueError, match="every user must have targets, but 1 of 2 have none"):
        measure(2, SCORES, torch.tensor([[0] * 5, [1] * 5]))
    with pytest.raises(ValueError, match="k must be one of 1 to 5, the number of items, but found 6"):
        measure(6, SCORES, TARGETS)
    with pytest.raises(ValueError, match="scores have NaN"):
        measure(2, SCORES * math.nan, TARGETS)
