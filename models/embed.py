"""From waveforms to embeddings: the one way for training and evaluation.

Legend: B clips, T frames, F mel bands, D features.
"""


def embed(modules, wav, lengths, augment=False):
    """Waveforms to embeddings, the one way for training and evaluation.

    Parameters
    ----------
    modules : mapping
        `compute_features`, `mean_var_norm`, `embedding_model` and, where asked for, `augment`.
    wav : torch.Tensor
        [B, samples].
    lengths : torch.Tensor
        [B], relative to the longest.
    augment : bool
        Whether these are training views.

    Returns
    -------
    torch.Tensor
        [B, D].
    """
    features = modules["compute_features"](wav)  # [B, T, F], log-mel in dB
    if augment:
        features = modules["augment"](features)
    features = modules["mean_var_norm"](features, lengths)
    return modules["embedding_model"](features, lengths).squeeze(1)  # [B, D]
