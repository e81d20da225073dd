"""An encoder trained here as X-ARES (arXiv 2505.16369) takes it: `python -m xares.run utils/xares.py TASKS...`.

X-ARES makes the class without arguments, so the environment variable SOUND_ENCODER names what `python -m utils.export`
wrote, or a run folder. X-ARES takes the one class of this module whose name ends in Encoder.
"""

import os

from utils.deploy import encoder, waveform
from utils.io.errors import InputError

VARIABLE = "SOUND_ENCODER"


class FrameEncoder(waveform.WaveformEncoder):
    """Frame embeddings of sounds. Legend: B sounds, S samples, T frames, D features.

    Attributes
    ----------
    sampling_rate : int
        Hz.
    output_dim : int
        D.
    hop_size_in_ms : float
        Time from one frame to the next.
    """

    def __init__(self, source: str | os.PathLike | None = None):
        source = source or os.environ.get(VARIABLE)
        if not source:
            raise InputError(f"No encoder given: set {VARIABLE} to an export or a run folder.")
        super().__init__(encoder.load_encoder(source))
        self.sampling_rate, self.output_dim, self.hop_size_in_ms = self.sample_rate, self.frame_dim(), self.hop_ms()

    def forward(self, audio):
        """Embed sounds frame by frame, [B, S] -> [B, T, D]."""
        return self.frames(audio)
