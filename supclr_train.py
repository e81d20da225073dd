"""Train an encoder on a stream of sound classes: by itself, by labels, or by a weighted sum of both losses.

"Learning Representations for New Sound Classes With Continual Self-Supervised Learning" (Wang et al., IEEE SPL 2022,
arXiv 2205.07390), sections II and III: loss = ssl_weight * NT-Xent + sup_weight * cross entropy. Instead of these,
other self-supervised methods (ssl_method) and supervised contrast (sup_loss) can be chosen, see docs/methods.md.

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --replay_num_keep=0 --use_mixup=False --ssl_weight=1 --sup_weight=0 --experiment_name=simclr

The weights after task t are in <output_base>/<experiment_name>+seed_<seed>/save/task<t>, for linclf_train.py to
evaluate. The same command resumes an interrupted run. Main keys: ssl_method, ssl_weight, sup_loss, sup_weight,
sup_projector, replay_num_keep, use_mixup, encoder (with emb_dim), task_classes, train_duration, batch_size,
number_of_epochs.

Commands, times and results of the runs on ESC-10: docs/results.md.
"""

from models.heads import classify, sup_features
from models.losses import SUP_LOSSES, is_contrastive
from models.methods import METHODS
from utils.run.exits import user_errors
from utils.run.experiment import Run
from utils.run.keys import TRAINING_KEYS
from utils.training.brain import TaskBrain
from utils.training.loop import Stream


class SupCLR(TaskBrain):
    """A self-supervised loss on two views, a loss with labels. Legend: B clips, D features, C classes."""

    needs = ("ssl_weight", "sup_weight", "sup_loss", "classifier", *TRAINING_KEYS)
    choices = {**TaskBrain.choices, "ssl_method": METHODS, "sup_loss": SUP_LOSSES}

    def compute_forward(self, batch, stage):
        """Embed the views, and run the heads of losses with a weight above 0. Other heads are not trained."""
        batch = self.prepare_batch(batch)
        contrastive = self.hparams.sup_weight and is_contrastive(self.sup_loss)
        n_views = 2 if self.hparams.ssl_weight or contrastive else 1
        out = self.embed_views(batch, stage, n_views)  # h1, h2 [B, D]
        if self.hparams.ssl_weight:
            out |= self.method(self.modules, out["view1"], out["view2"])  # z1, z2
        if contrastive:
            out["sup"] = [sup_features(self.modules, h) for h in (out["h1"], out["h2"])]  # two [B, D]
        elif self.hparams.sup_weight:
            out["sup"] = [classify(self.modules, out["h1"])]  # [B, C]
            out["logits"] = out["sup"][0]
        return self.with_memory(out, batch, stage)

    def compute_objectives(self, predictions, batch, stage):
        """Compute the weighted sum of the losses, a scalar."""
        losses = {}
        if self.hparams.ssl_weight:
            losses["ssl"] = self.method.loss(predictions)
        if self.hparams.sup_weight:
            losses["sup"] = self.sup_loss(*predictions["sup"], batch.label_probs.data)
        weights = {"ssl": self.hparams.ssl_weight, "sup": self.hparams.sup_weight}
        return self.weighted_sum(losses, weights, predictions, batch)


if __name__ == "__main__":
    with user_errors():
        run = Run(__doc__, SupCLR)  # parse the command line, build the YAML's objects, check the run folder
        run.read_data()  # read the metadata to a table of clips with tasks, open the audio store
        stream = Stream(SupCLR, run)  # select each task's clips, count its steps
        run.open()  # once all input is checked, make or open the run folder
        stream.train()  # one Brain per task, from the weights of the previous task
