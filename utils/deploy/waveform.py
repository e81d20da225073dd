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
        embedding = self.embed(waveform)
        return embedding if self.classifier is None else (embedding, self.classifier(embedding))

    def embed(self, waveform):
        """Embed sounds, [B, S] -> [B, D]."""
        return self.parts["embedding_model"](*self._features(waveform)).squeeze(1)

    def frames(self, waveform):
        """Embed sounds frame by frame, [B, S] -> [B, T, D'], see `SoundEncoder.frames`."""
        return self.parts["embedding_model"].frames(*self._features(waveform))

    @torch.inference_mode()
    def frame_dim(self) -> int:
        """Return D', the features of a frame."""
        return self.frames(torch.zeros(1, self.shortest, device=self._device())).shape[2]

    @torch.inference_mode()
    def hop_ms(self) -> float:
        """Return the milliseconds from one frame to the next, measured on sounds of 20 and of 40 s."""
        counts = [self.frames(torch.zeros(1, n * self.sample_rate, device=self._device())).shape[1] for n in (20, 40)]
        return 20_000 / (counts[1] - counts[0])

    def _device(self):
        return next(self.parameters()).device

    def _features(self, waveform):
        waveform = F.pad(waveform, (0, torch.sym_max(0, self.shortest - waveform.shape[1])))
        peak = waveform.abs().amax(dim=1, keepdim=True)
        waveform = waveform * (PEAK_LEVEL / torch.where(peak > 0, peak, 1.0))
        lengths = torch.ones_like(waveform[:, 0])
        return extract_features(self.parts, waveform, lengths), lengths
