"""From waveforms to embeddings: the one way for training and evaluation.

Legend: B clips, T frames, F mel bands, D features.
"""


def extract_features(modules, wav, lengths, augment=False):
    """Compute the encoder's input.

    Parameters
    ----------
    modules : mapping
        `compute_features`, `mean_var_norm` and, where asked for, `augment`.
    wav : torch.Tensor
        [B, samples].
    lengths : torch.Tensor
        [B], relative to the longest.
    augment : bool
        Whether these are training views.

    Returns
    -------
    torch.Tensor
        [B, T, F], log-mel in dB, normalised.
    """
    features = modules["compute_features"](wav)
    if augment:
        features = modules["augment"](features)
    return modules["mean_var_norm"](features, lengths)


def embed(modules, wav, lengths):
    """Embed whole clips: [B, samples], [B] -> [B, D]. `modules` also has `embedding_model`; the rest is as above."""
    return modules["embedding_model"](extract_features(modules, wav, lengths), lengths).squeeze(1)
