"""The two searches of `support`: embeddings of questions and answers, and words (BM25, TF-IDF); their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.data.text import terms
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation.metrics import rank_of
from gpt2.model.heads import pack
from gpt2.model.transformer import GPT2
from gpt2.tasks.support.dataset import PromptEncoder


class BM25:
    """BM25 ranking of texts (Robertson and Zaragoza 2009, section 3), with Lucene's idf."""

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75):
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import CountVectorizer

        self.vectorizer = CountVectorizer(analyzer=terms)
        counts = csr_matrix(self.vectorizer.fit_transform(texts), dtype=float)
        length, having = np.asarray(counts.sum(1))[:, 0], np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        norm = k1 * (1 - b + b * length / length.mean())
        row = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        counts.data = idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + norm[row])
        self.weights = counts

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Return (queries, texts) scores."""
        return (self.vectorizer.transform(queries) @ self.weights.T).toarray()


def tf_idf(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Return (queries, texts) cosines of sublinear TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=terms, sublinear_tf=True)
    weights = vectorizer.fit_transform(texts)
    return (vectorizer.transform(queries) @ weights.T).toarray()


def best_rank(scores: np.ndarray, right: Sequence[int]) -> int:
    """Return the rank, from 1, of the best right answer by (answers,) scores; the other right ones don't count.

    Without right answers it is the rank after all others.
    """
    if not len(right):
        return len(scores) + 1
    best = max(right, key=lambda i: scores[i])
    return rank_of(scores, best, np.array([i for i in right if i != best], dtype=int))


def fit(parts: Sequence[np.ndarray], right: Sequence[Sequence[int]]) -> list[float]:
    """Return the non-negative weights of (queries, texts) scores that maximise the likelihood of the right texts.

    The likelihood is a softmax of the weighted sum over all texts. It is convex if each query has one right text.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    stacked = np.stack(parts)

    def loss(weights: np.ndarray) -> float:
        scores = np.tensordot(weights, stacked, axes=1)
        likelihoods = [logsumexp(row[items]) for row, items in zip(scores, right, strict=True)]
        return float(np.mean(logsumexp(scores, axis=1) - likelihoods))

    bounds = [(0.0, 100.0)] * len(parts)
    return [round(float(w), 6) for w in minimize(loss, np.ones(len(parts)), bounds=bounds).x]


class Retriever(nn.Module):
    """Embeds questions and answers as unit vectors by one encoder, and writes replies by the language model.

    A vector has two parts. One is the projected mean hidden state. The other is the mean token embedding weighted by
    rarity among the answers (Arora et al. 2017), which finds shared words before any training. The loss is that of the
    right answer among wrong ones by scaled cosine (DPR, Karpukhin et al. 2020), plus that of the reply's tokens.
    """

    rarity: Tensor

    def __init__(self, model: GPT2, rarity: Tensor, reply_weight: float, width: int = 128):
        super().__init__()
        self.model, self.reply_weight = model, reply_weight
        self.project = nn.Linear(model.config.n_embd, width)
        self.centre = nn.Parameter(model.wte.weight.detach().mean(0))
        self.words = nn.Parameter(torch.ones(1))
        self.log_scale = nn.Parameter(torch.full((1,), 3.0))
        self.register_buffer("rarity", rarity, persistent=False)

    def joined(self, hidden: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, C + width) unit vectors of (B, T, C) hidden states of (B, T) tokens with (B,) `lengths`."""
        inside = (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).to(hidden.dtype)
        mean = (hidden * inside[..., None]).sum(1) / lengths[:, None].to(hidden.dtype)
        weights = self.rarity.to(hidden.dtype)[tokens] * inside
        words = ((self.model.wte(tokens) - self.centre) * weights[..., None]).sum(1)
        share, parts = torch.sigmoid(self.words), (words, self.project(mean))
        # In bf16 a scaled cosine would be off by 0.05, and its gradient, a small difference, by a tenth.
        lexical, semantic = (F.normalize(part.float(), dim=-1) for part in parts)
        return torch.cat([share.sqrt() * lexical, (1 - share).sqrt() * semantic], dim=-1)

    def hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, T, C) hidden states of (B, T) ids; zeros at padding."""
        tokens, packed = pack(ids, lengths)
        states = self.model.hidden(tokens, packed=packed)
        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return states.new_zeros(*ids.shape, states.shape[-1]).masked_scatter(inside[..., None], states)

    def embed(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, C + width) unit vectors of (B, T) ids, padded on the right."""
        return self.joined(self.hidden(ids, lengths), ids, lengths)

    def forward(
        self, ids: Tensor, lengths: Tensor, question_lengths: Tensor, reply_lengths: Tensor, answers: Tensor,
        answer_lengths: Tensor, right: Tensor, candidates: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the mean loss over the questions of a `PairDataset` batch, a scalar."""
        hidden = self.hidden(ids, lengths)  # causal: the question's states do not depend on what follows
        questions = self.joined(hidden, ids, question_lengths)
        scores = (self.log_scale.exp() * questions @ self.embed(answers, answer_lengths).T).float()
        loss = F.cross_entropy(scores.masked_fill(~candidates, float("-inf")), right)
        if not self.reply_weight:
            return loss
        at = torch.arange(1, ids.shape[1], device=ids.device)
        reply = (at >= (lengths - reply_lengths)[:, None]) & (at < lengths[:, None])
        logits = self.model.logits(hidden[:, :-1][reply]).float()
        each = F.cross_entropy(logits, ids[:, 1:][reply], reduction="none")
        per_token = (reply / reply_lengths[:, None])[reply]
        return loss + self.reply_weight * (each * per_token).sum() / len(ids)


def rarity(answers: Sequence[str], tokenizer: Tokenizer, vocabulary: int) -> Tensor:
    """Return (vocabulary,) weights of tokens: a / (a + share of the answers' tokens), a = 0.001 (Arora et al. 2017)."""
    rows = PromptEncoder(tokenizer, 10**6).plain(answers, 10**6)
    counts = np.bincount(np.concatenate(rows), minlength=vocabulary)
    return torch.tensor(1e-3 / (1e-3 + counts / counts.sum()), dtype=torch.float32)
