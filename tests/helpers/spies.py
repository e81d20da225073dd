"""Parts for a YAML that record what a training gives them, and spoil it at certain calls."""

import torch
from speechbrain.lobes.features import Fbank as SpeechBrainFbank

from models.losses import NTXentLoss as PlainNTXentLoss

CHANGES = [
    ("!name:torch.optim.SGD", "!name:helpers.spies.SGD"),
    ("!name:speechbrain.lobes.features.Fbank", "!name:helpers.spies.Fbank"),
    ("!new:models.losses.NTXentLoss", "!new:helpers.spies.NTXentLoss"),
]
notes = {}  # recorded since `reset`: views, losses, and the state at each step of an optimizer
spoiled = {}  # numbers of the calls, from 1, at which views, losses or gradients are NaN or infinite


def reset(**spoiled_calls):
    notes.update(views=[], losses=[], steps=[])
    spoiled.update({"views": (), "losses": (), "gradients": (), **spoiled_calls})


class Fbank(SpeechBrainFbank):
    """Records each batch of one view, [B, samples]."""

    def forward(self, wav):
        if len(wav) > 1:  # not the clip with which a front end is tried out
            notes["views"].append(wav.clone())
            if len(notes["views"]) in spoiled["views"]:
                wav = torch.cat([wav[:1] * float("nan"), wav[1:]])
        return super().forward(wav)


class NTXentLoss(PlainNTXentLoss):
    """Records each loss."""

    def forward(self, z1, z2):
        loss, call = super().forward(z1, z2), len(notes["losses"]) + 1
        if call in spoiled["losses"]:
            loss = loss * float("inf")
        notes["losses"].append(float(loss.detach()))
        if call in spoiled["gradients"]:
            return loss + (0.0 * z1.sum()).sqrt()  # 0, and its derivative is 0 times infinity
        return loss


class SGD(torch.optim.SGD):
    """Records at each step rate, shapes of the parameters, norm of the gradient, all state before and after."""

    def step(self, *args, **kwargs):
        (group,) = self.param_groups
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients])).item()
        note = {"lr": group["lr"], "shapes": [p.shape for p in group["params"]], "norm": norm, "before": self.all()}
        super().step(*args, **kwargs)
        notes["steps"].append({**note, "after": self.all()})

    def all(self):
        """Join weights and momentum to one tensor."""
        momentum = [state["momentum_buffer"] for state in self.state.values() if "momentum_buffer" in state]
        return torch.cat([tensor.detach().flatten().clone() for tensor in (*self.param_groups[0]["params"], *momentum)])
