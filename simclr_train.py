"""Train an encoder on a stream of sound classes without labels, by SimCLR.

SimCLR (Chen et al., ICML 2020, arXiv 2002.05709) over a stream of tasks, as in "Learning Representations for New Sound
Classes With Continual Self-Supervised Learning" (Wang et al., IEEE SPL 2022, arXiv 2205.07390), section II: the loss
pulls two views of a clip together and pushes views of different clips apart.

    python simclr_train.py hparams/simclr_train.yaml --data_folder=UrbanSound8K --output_base=results

hparams/simclr_train.yaml trains an ECAPA-TDNN on UrbanSound8K in classID order; hparams/{us8k,tau19,vgg,esc50,demo}/
have a configuration per data set. The weights after task t are in <output_base>/<experiment_name>+seed_<seed>/save/
task<t>, for linclf_train.py to evaluate. The same command resumes an interrupted run. Main keys: encoder (with
emb_dim), temperature, replay_num_keep, use_mixup, task_classes, train_duration, batch_size, number_of_epochs,
pretrained_weights.

Commands, times and results of the runs on ESC-10: docs/results.md.
"""

from utils.run.exits import user_errors
from utils.run.experiment import Run
from utils.run.keys import TRAINING_KEYS
from utils.training.brain import TaskBrain
from utils.training.loop import Stream


class SimCLR(TaskBrain):
    """NT-Xent on two views. Legend: B clips, D embedding features."""

    needs = ("ntxent_loss", *TRAINING_KEYS)
    ssl_method = "simclr"

    def compute_forward(self, batch, stage):
        """Compute the predictor's outputs of both views."""
        batch = self.prepare_batch(batch)
        out = self.embed_views(batch, stage)  # h1, h2 [B, D]
        out["z1"] = self.modules.predictor(self.modules.projector(out["h1"]))  # [B, D]
        out["z2"] = self.modules.predictor(self.modules.projector(out["h2"]))  # [B, D]
        return self.with_memory(out, batch, stage)

    def compute_objectives(self, predictions, batch, stage):
        """Compute the loss, a scalar."""
        loss = self.hparams.ntxent_loss(predictions["z1"], predictions["z2"])
        return self.weighted_sum({"ssl": loss}, {"ssl": 1.0}, predictions, batch)


if __name__ == "__main__":
    with user_errors():
        run = Run(__doc__, SimCLR)  # parse the command line, build the YAML's objects, check the run folder
        run.read_data()  # read the metadata to a table of clips with tasks, open the audio store
        stream = Stream(SimCLR, run)  # select each task's clips, count its steps
        run.open()  # once all input is checked, make or open the run folder
        stream.train()  # one Brain per task, from the weights of the previous task
