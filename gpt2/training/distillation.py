"""Knowledge distillation: a smaller model learns from a fine-tuned one's probabilities (Hinton et al. 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.config import ModelConfig
from gpt2.model.heads import Classifier, label_loss
from gpt2.model.transformer import GPT2
from gpt2.training.config import DistilConfig


class Distilled(nn.Module):
    """A student and its frozen teacher, which has no dropout."""

    def __init__(self, student: Classifier, teacher: Classifier, config: DistilConfig):
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.temperature, self.weight = config.temperature, config.weight

    def train(self, mode: bool = True) -> Distilled:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        ngrams: Tensor | None = None,
    ) -> Tensor:
        """Return the mean of (1 - w) x cross-entropy of the labels + w T^2 x KL(teacher || student) at temperature T.

        `weights` (B,) apply to the labels only, not to the teacher. `ngrams` (B, classes) are added to the student's
        logits, and to the teacher's if it was trained with them.
        """
        logits = self.student.logits(ids, lengths, ngrams).float()
        hard = label_loss(logits, labels, weights)
        if not self.weight:
            return hard
        with torch.no_grad():
            taught = self.teacher.logits(ids, lengths, ngrams if self.teacher.ngrams else None)
            goal = (taught.float() / self.temperature).log_softmax(-1)
        learned = (logits / self.temperature).log_softmax(-1)
        soft = F.kl_div(learned, goal, reduction="batchmean", log_target=True)
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft


def student(teacher: GPT2, config: DistilConfig) -> GPT2:
    """Return the student; `ValueError` if it can't start from the teacher's layers.

    Layers are taken evenly, including the first and the last, with the embeddings (DistilBERT, Sanh et al. 2019).
    """
    model = GPT2(ModelConfig(**config.student.model_dump(), vocab_size=teacher.config.vocab_size))
    if not config.layers_from_teacher:
        return model
    ours, theirs = model.config, teacher.config
    if ours.model_copy(update={"n_layer": theirs.n_layer, "dropout": theirs.dropout}) != theirs:
        raise ValueError(
            f"layers_from_teacher needs a student of the teacher's shape but for n_layer and dropout: n_embd="
            f"{theirs.n_embd}, n_head={theirs.n_head}, n_positions={theirs.n_positions}; set these in student"
        )
    if ours.n_layer > theirs.n_layer:
        raise ValueError(f"student.n_layer={ours.n_layer} is more than the teacher's {theirs.n_layer}; lower it")
    chosen = torch.linspace(0, theirs.n_layer - 1, ours.n_layer).round().int().tolist()
    for own, block in zip(model.blocks, (teacher.blocks[i] for i in chosen), strict=True):
        own.load_state_dict(block.state_dict())
    rest = {name: value for name, value in teacher.state_dict().items() if not name.startswith("blocks.")}
    model.load_state_dict(rest, strict=False)
    return model
