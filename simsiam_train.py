"""Train an encoder on a stream of sound classes without labels, by SimSiam.

SimSiam (Chen and He, CVPR 2021, arXiv 2011.10566) over a stream of tasks, as in "Learning Representations for New Sound
Classes With Continual Self-Supervised Learning" (Wang et al., IEEE SPL 2022, arXiv 2205.07390), section II: each view's
prediction is pulled to the other view's projection, which gets no gradient. There are no negatives.

    python simsiam_train.py hparams/simsiam_train.yaml --data_folder=UrbanSound8K --output_base=results

hparams/simsiam_train.yaml trains an ECAPA-TDNN on UrbanSound8K in classID order; hparams/{us8k,tau19,vgg,esc50,demo}/
have a configuration per data set. The weights after task t are in <output_base>/<experiment_name>+seed_<seed>/save/
task<t>, for linclf_train.py to evaluate. The same command resumes an interrupted run. Main keys: encoder (with
emb_dim), replay_num_keep, use_mixup, task_classes, train_duration, batch_size, number_of_epochs, pretrained_weights.

Commands, times and results of the runs on ESC-10: docs/results.md.
"""

from utils.run.exits import user_errors
from utils.run.experiment import Run
from utils.run.keys import TRAINING_KEYS
from utils.training.brain import TaskBrain
from utils.training.loop import Stream


class SimSiam(TaskBrain):
    """Negative cosine of each view's prediction and the other's projection. Legend: B clips, D embedding features."""

    needs = ("cosine_loss", *TRAINING_KEYS)
    ssl_method = "simsiam"

    def compute_forward(self, batch, stage):
        """Compute projections and predictions of both views."""
        batch = self.prepare_batch(batch)
        out = self.embed_views(batch, stage)  # h1, h2 [B, D]
        out["z1"], out["z2"] = self.modules.projector(out["h1"]), self.modules.projector(out["h2"])  # [B, D]
        out["p1"], out["p2"] = self.modules.predictor(out["z1"]), self.modules.predictor(out["z2"])  # [B, D]
        return self.with_memory(out, batch, stage)

    def compute_objectives(self, predictions, batch, stage):
        """Compute the symmetric loss (equation 2), a scalar from -1 to 1. If it reaches -1 at once, z has collapsed."""
        p1, p2, z1, z2 = (predictions[name] for name in ("p1", "p2", "z1", "z2"))
        loss = 0.5 * (self.hparams.cosine_loss(p1, z2) + self.hparams.cosine_loss(p2, z1))
        return self.weighted_sum({"ssl": loss}, {"ssl": 1.0}, predictions, batch)


if __name__ == "__main__":
    with user_errors():
        run = Run(__doc__, SimSiam)  # parse the command line, build the YAML's objects, check the run folder
        run.read_data()  # read the metadata to a table of clips with tasks, open the audio store
        stream = Stream(SimSiam, run)  # select each task's clips, count its steps
        run.open()  # once all input is checked, make or open the run folder
        stream.train()  # one Brain per task, from the weights of the previous task
