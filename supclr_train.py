"""Train an encoder on a stream of sound classes: SimCLR, cross entropy with labels, or a weighted sum of both.

"Learning Representations for New Sound Classes With Continual Self-Supervised Learning" (Wang et al., IEEE SPL 2022,
arXiv 2205.07390), sections II and III: loss = ssl_weight * NT-Xent + sup_weight * cross entropy.

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --replay_num_keep=0 --use_mixup=False --ssl_weight=1 --sup_weight=0 --experiment_name=simclr

The weights after task t are in <output_base>/<experiment_name>+seed_<seed>/save/task<t>; linclf_train.py judges them.
The same command again goes on where it stopped. Keys that matter: ssl_weight, sup_weight, replay_num_keep, use_mixup,
encoder (with emb_dim), task_classes, train_duration, batch_size, number_of_epochs.

docs/results.md has the commands, times and figures of the runs on ESC-10.
"""

from utils.run.exits import user_errors
from utils.run.experiment import Run
from utils.run.keys import TRAINING_KEYS
from utils.training.brain import TaskBrain
from utils.training.loop import Stream


class SupCLR(TaskBrain):
    """A self-supervised loss on two views, cross entropy on the first. Legend: B clips, D features, C classes."""

    needs = ("ssl_weight", "sup_weight", "sup_loss", "classifier", *TRAINING_KEYS)

    def compute_forward(self, batch, stage):
        """Embed the views and run the heads whose loss has a weight; the others' weights get no gradient and stay."""
        batch = self.prepare_batch(batch)
        out = self.embed_views(batch, stage, n_views=2 if self.hparams.ssl_weight else 1)  # h1, h2 [B, D]
        if self.hparams.ssl_weight:
            out |= self.method(self.modules, out["view1"], out["view2"])  # z1, z2
        if self.hparams.sup_weight:
            out["logits"] = self.modules.classifier(out["h1"])  # [B, C]
        return self.with_memory(out, batch, stage)

    def compute_objectives(self, predictions, batch, stage):
        """The weighted sum of the losses, a scalar."""
        losses = {}
        if self.hparams.ssl_weight:
            losses["ssl"] = self.method.loss(predictions)
        if self.hparams.sup_weight:
            losses["sup"] = self.hparams.sup_loss(predictions["logits"], batch.label_probs.data)
        weights = {"ssl": self.hparams.ssl_weight, "sup": self.hparams.sup_weight}
        return self.weighted_sum(losses, weights, predictions, batch)


if __name__ == "__main__":
    with user_errors():
        run = Run(__doc__, SupCLR)  # the command line and the YAML; another run's folder is refused
        run.read_data()  # metadata to a table of clips with tasks; their samples in the store
        stream = Stream(SupCLR, run)  # each task's clips and steps
        run.open()  # all input is good: the run's folder, with its settings and record
        stream.train()  # one Brain a task, from the weights of the task before
