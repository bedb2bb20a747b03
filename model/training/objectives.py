"""A stage's training objective: the model and its loss as one module, so that DDP and FSDP2 see one forward pass."""

import torch
from torch import Tensor, nn

from model.network.head import IGNORED, linear_cross_entropy, token_log_probs
from model.network.transformer import Transformer
from model.training.preference import PairLogProbs, dpo_loss

SUMS = ("nll", "labels", "bytes", "correct")
CHUNK_POSITIONS = 1024  # positions whose logits are held at a time while answers are counted


class Objective(nn.Module):
    """Maps the tensors of a batch to (summed loss, sums): scalar, and (len(names),) to be added up over batches."""

    names: tuple[str, ...] = ()

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss summed over the batch, with a gradient, and the sums named in `names`, without one."""
        raise NotImplementedError

    def _hidden(self, batch: dict[str, Tensor]) -> Tensor:
        return self.transformer.hidden(
            batch["input_ids"], position_ids=batch.get("position_ids"), document_ids=batch.get("document_ids")
        )


class NextToken(Objective):
    """Cross-entropy of the next token; in evaluation also how often the likeliest token was right.

    Given the names of `sources`, a batch that says whose each label is (`source_ids`) adds what each gives to the sums:
    `nll/web`, `labels/web`, `bytes/web`, `correct/web`. `weights` are factors on the loss in training of such labels,
    by source.
    """

    names: tuple[str, ...] = SUMS

    def __init__(
        self,
        transformer: Transformer,
        z_loss: float = 0.0,
        sources: tuple[str, ...] = (),
        weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__(transformer)
        self.z_loss, self.sources, self.weights = z_loss, len(sources), weights or (1.0,) * len(sources)
        self.names += tuple(f"{name}/{source}" for name in SUMS for source in sources)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, labels = self._hidden(batch), batch["labels"]
        if self.sources and "source_ids" in batch:
            return self._trained_by_source(hidden, batch) if self.training else self._measured_by_source(hidden, batch)
        if self.training:
            loss = self._loss(hidden, labels)
            correct = loss.new_zeros(())
        else:
            # Without z-loss, and by the plain products: the model as it is exported.
            loss = linear_cross_entropy(hidden, self.transformer.head_weight, labels, reduction="sum")
            correct = count_correct(hidden, self.transformer.head_weight, labels)
        sums = torch.stack([loss.detach(), (labels != IGNORED).sum(), batch["label_bytes"].sum(), correct]).float()
        return loss, torch.cat([sums, sums.new_zeros(len(SUMS) * self.sources)])

    def _loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        weight, products = self.transformer.head_weight, self.transformer.head_products
        return linear_cross_entropy(hidden, weight, labels, self.z_loss, reduction="sum", products=products)

    def _trained_by_source(self, hidden: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Each source's labels by themselves: the head meets each label once, so it costs no more."""
        labels, owners = batch["labels"], batch["source_ids"]
        own = [labels.masked_fill(owners != source, IGNORED) for source in range(self.sources)]
        losses = torch.stack([self._loss(hidden, one) for one in own])
        counted = torch.stack([(one != IGNORED).sum() for one in own]).to(losses)
        sizes = batch["source_bytes"].sum(0).to(losses)
        by_source = torch.stack([losses.detach(), counted, sizes, torch.zeros_like(sizes)]).float()
        weights = losses.new_tensor(self.weights)
        return (weights * losses).sum(), torch.cat([by_source.sum(1), by_source.reshape(-1)])

    def _measured_by_source(self, hidden: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Nats, labels, bytes and correct ones in all and of each source, without a gradient."""
        labels, owners = batch["labels"], batch["source_ids"].reshape(-1)
        head = self.transformer.head_weight
        nats = -token_log_probs(hidden.detach(), head.detach(), labels).reshape(-1)
        nats = nats.double()  # index_add adds one by one: thousands of tokens in fp32 would cost the seventh digit
        right = likeliest(hidden, head, labels).reshape(-1).to(nats)
        empty = nats.new_zeros(self.sources)
        by_label = (nats, (labels != IGNORED).reshape(-1).to(nats), right)
        found, counted, correct = (empty.index_add(0, owners, values) for values in by_label)
        by_source = torch.stack([found, counted, batch["source_bytes"].sum(0).to(nats), correct])
        return by_source[0].sum(), torch.cat([by_source.sum(1), by_source.reshape(-1)]).float()


class Preference(Objective):
    """Direct preference optimisation over packed pairs.

    A batch without `reference_log_probs` is the question for them: the sums are then the log-probability of each
    packed sequence under the present weights, (sequences,).
    """

    names = ("loss", "pairs", "correct", "margin", "chosen_reward", "rejected_reward")

    def __init__(
        self,
        transformer: Transformer,
        beta: float,
        loss_type: str,
        label_smoothing: float,
        sft_weight: float,
    ) -> None:
        super().__init__(transformer)
        self.beta, self.loss_type = beta, loss_type
        self.label_smoothing, self.sft_weight = label_smoothing, sft_weight

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = sequence_log_probs(self.transformer, self._hidden(batch), batch)
        if "reference_log_probs" not in batch:
            return found.sum(), found.detach()
        reference, counts = batch["reference_log_probs"], batch["label_counts"]
        pairs = PairLogProbs(found[::2], found[1::2], reference[::2], reference[1::2], counts[::2], counts[1::2])
        result = dpo_loss(pairs, self.beta, self.loss_type, self.label_smoothing)
        count = len(pairs.chosen)
        loss = result.loss * count  # a sum, which the loop divides by the pairs of the whole step
        if self.sft_weight:  # keeps the chosen answers likely (RPO, arXiv:2404.19733)
            loss = loss - self.sft_weight * (pairs.chosen / pairs.chosen_tokens.clamp(min=1)).sum()
        chosen, rejected = result.chosen_rewards, result.rejected_rewards
        sums = [loss.detach(), loss.new_tensor(count), (chosen > rejected).sum(), (chosen - rejected).sum()]
        return loss, torch.stack([*sums, chosen.sum(), rejected.sum()]).float()


def sequence_log_probs(transformer: Transformer, hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Log-probability of the labels of each packed sequence: (sequences,), in at least fp32."""
    by_token = token_log_probs(hidden, transformer.head_weight, batch["labels"]).reshape(-1)
    owners = batch["sequence_ids"].reshape(-1)
    count = len(batch["label_counts"])
    padded = torch.where(owners < 0, count, owners)  # padding into a slot of its own, cut off below
    return by_token.new_zeros(count + 1).index_add(0, padded, by_token)[:count]


def count_correct(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """How many labels are the likeliest token: scalar."""
    return likeliest(hidden, weight, labels).sum().float()


@torch.no_grad()
def likeliest(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Whether the label is the token that greedy decoding would take: bool, shape of `labels`, False where ignored."""
    rows, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    found = torch.zeros_like(targets, dtype=torch.bool)
    head = weight.to(rows.dtype).T
    for index in torch.split((targets != IGNORED).nonzero()[:, 0], CHUNK_POSITIONS):
        found[index] = (rows[index] @ head).argmax(-1) == targets[index]
    return found.view(labels.shape)
