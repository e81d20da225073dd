"""Embed in several processes under torchrun, and then go on in one."""

import numpy as np
import torch

from utils.evaluation.embeddings import cache_beside, make_embedder
from utils.run.processes import go_on_alone, launched, rank, share_weights, wait_for_all, world_size


def embed_together(evaluation, folders, random_weights):
    """Embed what an evaluation needs in all processes that torchrun has started; without torchrun, do nothing.

    Every process takes every n-th batch of each encoder, and writes its embeddings beside the encoder. Then all end but
    rank 0, which goes on as a single process and finds the embeddings there. The batches are those of a single process,
    so on a CPU the embeddings are too, to the bit.

    Parameters
    ----------
    evaluation : utils.evaluation.judge.Evaluation
    folders : list of str
        The encoders' task folders, in order.
    random_weights : dict of str to torch.Tensor
        State of the untrained encoder; that of rank 0 afterwards.

    Returns
    -------
    int
        How many clips all processes have embedded.
    """
    if not launched():
        return 0
    n_embedded = 0
    if not evaluation.needs_audio:
        share_weights(_Tensors(random_weights))
        n_embedded = _embed_shares(evaluation, folders, random_weights)
    go_on_alone()
    return n_embedded


def _embed_shares(evaluation, folders, random_weights):
    run = evaluation.run
    embedder, cache = make_embedder(run.hparams, run.options), cache_beside(folders[0], run.folder)
    last = 1 if evaluation.every_task else len(folders)
    stages = [(folder, [t]) for t, folder in enumerate(folders)] + [(None, range(last))]
    plan = []
    for folder, tasks in stages:
        evaluation.load(folder, random_weights)
        key = embedder.key()
        known, groups = cache.known(embedder, key), []
        for t in tasks:  # as one after the other in a single process, where a later one finds what an earlier embedded
            clips = np.concatenate([split["clip"].to_numpy() for split in evaluation.rows(t).values()])
            groups.append(clips[cache.missing(evaluation.data.store.ids[clips], known)])
            known.update(evaluation.data.store.ids[clips])
        plan.append((folder, key, groups))
    wait_for_all("embeddings to make")  # nobody has written any yet: all have made the same plan
    for folder, key, groups in plan:
        evaluation.load(folder, random_weights)
        for clips in groups:
            what = "random weights" if folder is None else folder
            cache.put_share(embedder, evaluation.data.store, clips, what, key, (rank(), world_size()))
    return sum(len(clips) for _, _, groups in plan for clips in groups)


class _Tensors(torch.nn.Module):
    """A state as buffers, so that it can be shared among processes."""

    def __init__(self, state):
        super().__init__()
        for place, tensor in enumerate(state.values()):
            self.register_buffer(str(place), tensor)
