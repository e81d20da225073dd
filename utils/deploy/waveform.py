"""An encoder as one torch module, from waveforms to embeddings. Legend: B sounds, S samples, T frames, D features."""

import torch
import torch.nn.functional as F
from torch import nn

from datasets.audio import PEAK_LEVEL
from models.embed import extract_features
from utils.deploy.encoder import SHORTEST, SoundEncoder


class WaveformEncoder(nn.Module):
    """A trained encoder with its front end and, where a probe came with it, its classifier.

    Sounds are scaled and, where too short, padded as `SoundEncoder` does it, except that samples are not rounded to 16
    bits. Each batch passes at once, however long.

    Parameters
    ----------
    encoder
        Whose modules are shared.
    modules
        Instead of the encoder's.
    """

    def __init__(self, encoder: SoundEncoder, modules: dict[str, nn.Module] | None = None):
        super().__init__()
        self.parts = nn.ModuleDict(modules or encoder.embedder.modules)
        self.sample_rate, self.dim = encoder.sample_rate, encoder.dim
        self.shortest = round(SHORTEST * encoder.sample_rate)
        self.classifier = None
        if encoder.probe is not None:
            self.classifier = nn.Linear(self.dim, len(encoder.probe.classes))
            state = {name: torch.from_numpy(getattr(encoder.probe, name)) for name in ("weight", "bias")}
            self.classifier.load_state_dict(state)
        self.eval().requires_grad_(False)

    def forward(self, waveform):
        """Embed sounds, [B, S] -> [B, D]; with a classifier also its logits [B, C]."""
        features, lengths = self._features(waveform)
        embedding = self.parts["embedding_model"](features, lengths).squeeze(1)
        return embedding if self.classifier is None else (embedding, self.classifier(embedding))

    def frames(self, waveform):
        """Embed sounds frame by frame, [B, S] -> [B, T, D'], see `SoundEncoder.frames`."""
        return self.parts["embedding_model"].frames(*self._features(waveform))

    def _features(self, waveform):
        waveform = F.pad(waveform, (0, torch.sym_max(0, self.shortest - waveform.shape[1])))
        peak = waveform.abs().amax(dim=1, keepdim=True)
        waveform = waveform * (PEAK_LEVEL / torch.where(peak > 0, peak, 1.0))
        lengths = torch.ones_like(waveform[:, 0])
        return extract_features(self.parts, waveform, lengths), lengths
