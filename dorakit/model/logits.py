"""Logits at chosen positions: the head runs on those alone, if that gives the model's own logits.

Two readers of logits ask the model itself instead. Generation reads the last position of rows padded on the left, which
transformers picks (`logits_to_keep`); a receipt compares whole models at every position (export/receipt.py).

Shapes: B rows, T tokens, N chosen positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from dorakit.model.load import input_device
from dorakit.model.tasks import CAUSAL_LM


class Logits:
    """A model's logits at chosen positions.

    Attributes:
        skips_others: The logits of other positions are never computed. False for families that soft-cap or scale their
            logits after the head.
    """

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self.skips_others = self._head_after_backbone_is_the_model()

    def before_head(
        self, inputs: Mapping[str, Tensor], at_BT: Tensor, past: Cache | None = None
    ) -> tuple[Tensor, nn.Module]:
        """Hidden states (N, H) of the positions marked true, row by row, and the head that turns them into logits.

        If other positions cannot be skipped: the logits (N, V) and the identity. `past` holds the keys and values of
        earlier tokens; those of `inputs` are added to it.
        """
        model, device = self._model, input_device(self._model)
        given: dict[str, Any] = {name: tensor.to(device) for name, tensor in inputs.items()}
        given["use_cache"] = past is not None
        if past is not None:
            given["past_key_values"] = past
        if self.skips_others:
            return CAUSAL_LM.backbone(model)(**given).last_hidden_state[at_BT.to(device)], CAUSAL_LM.head(model)
        return model(**given).logits[at_BT.to(device)], nn.Identity()

    @torch.no_grad()
    def at(self, inputs: Mapping[str, Tensor], at_BT: Tensor, past: Cache | None = None) -> Tensor:
        """float32 logits (N, V) of the positions marked true, row by row, without gradient; `past` as in `before_head`."""
        hidden_NH, head = self.before_head(inputs, at_BT, past)
        return head(hidden_NH).float()  # type: ignore[no-any-return]

    def _head_after_backbone_is_the_model(self) -> bool:
        model = self._model
        backbone, head = CAUSAL_LM.backbone(model), CAUSAL_LM.head(model)
        if head is None or backbone is model:
            return False
        ids = torch.arange(8, device=input_device(model))[None]
        with probing(model):
            inputs = {"input_ids": ids % model.config.get_text_config().vocab_size, "use_cache": False}
            whole = model(**inputs).logits
            parts = head(backbone(**inputs, position_ids=ids).last_hidden_state)
        return torch.equal(whole, parts.to(whole.dtype))


@contextlib.contextmanager
def probing(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, without gradient; the training state is restored."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)
