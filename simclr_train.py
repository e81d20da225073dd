"""Train an encoder on a stream of sound classes without labels, by SimCLR.

SimCLR (Chen et al., ICML 2020, arXiv 2002.05709) over a stream of tasks, as in "Learning Representations for New Sound
Classes With Continual Self-Supervised Learning" (Wang et al., IEEE SPL 2022, arXiv 2205.07390), section II: two views
of a clip attract each other, those of the batch's other clips repel.

    python simclr_train.py hparams/simclr_train.yaml --data_folder=UrbanSound8K --output_base=results

hparams/simclr_train.yaml trains an ECAPA-TDNN on UrbanSound8K in classID order; hparams/{us8k,tau19,vgg,esc50,demo}/
have one for each data set. The weights after task t are in <output_base>/<experiment_name>+seed_<seed>/save/task<t>;
linclf_train.py judges them. The same command again goes on where it stopped. Keys that matter: encoder (with emb_dim),
temperature, replay_num_keep, use_mixup, task_classes, train_duration, batch_size, number_of_epochs, pretrained_weights.

docs/results.md has the commands, times and figures of the runs on ESC-10.
"""

from utils.run.exits import user_errors
from utils.run.experiment import Run
from utils.run.keys import TRAINING_KEYS
from utils.training.brain import TaskBrain
from utils.training.loop import Stream


class SimCLR(TaskBrain):
    """NT-Xent on the two views. Legend: B clips, D embedding features."""

    needs = ("ntxent_loss", *TRAINING_KEYS)
    ssl_method = "simclr"

    def compute_forward(self, batch, stage):
        """Predictor outputs of both views."""
        batch = self.prepare_batch(batch)
        out = self.embed_views(batch, stage)  # h1, h2 [B, D]: each view on its own, as batch statistics are per view
        out["z1"] = self.modules.predictor(self.modules.projector(out["h1"]))  # [B, D]
        out["z2"] = self.modules.predictor(self.modules.projector(out["h2"]))  # [B, D]
        return self.with_memory(out, batch, stage)

    def compute_objectives(self, predictions, batch, stage):
        """The loss, a scalar."""
        loss = self.hparams.ntxent_loss(predictions["z1"], predictions["z2"])
        return self.weighted_sum({"ssl": loss}, {"ssl": 1.0}, predictions, batch)


if __name__ == "__main__":
    with user_errors():
        run = Run(__doc__, SimCLR)  # the command line and the YAML; another run's folder is refused
        run.read_data()  # metadata to a table of clips with tasks; their samples in the store
        stream = Stream(SimCLR, run)  # each task's clips and steps
        run.open()  # all input is good: the run's folder, with its settings and record
        stream.train()  # one Brain a task, from the weights of the task before
