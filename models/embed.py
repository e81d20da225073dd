"""From waveforms to embeddings, for training and evaluation alike.

Legend: B clips, T frames, F mel bands, D features.
"""


def embed(modules, wav, lengths, augment=False):
    """Embed waveforms.

    Parameters
    ----------
    modules : mapping
        `compute_features`, `mean_var_norm`, `embedding_model` and, for `augment=True`, `augment`.
    wav : torch.Tensor
        [B, samples].
    lengths : torch.Tensor
        [B], relative to the longest.
    augment : bool
        Augment the features, for training views.

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
