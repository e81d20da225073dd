"""Train an encoder and a classifier on a stream of sound classes with labels: the supervised counterpart.

Class-incremental training of "Learning Representations for New Sound Classes With Continual Self-Supervised Learning"
(Wang et al., IEEE SPL 2022, arXiv 2205.07390), section III, which self-supervised encoders are compared with; with all
classes in one task it is offline training, the ceiling.

    python sup_train.py hparams/sup_train.yaml --data_folder=UrbanSound8K --output_base=results
    python sup_train.py hparams/us8k/sup_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --task_classes="[(0,1,2,3,4,5,6,7,8,9)]" --experiment_name=sup-offline

hparams/sup_train.yaml trains an ECAPA-TDNN on UrbanSound8K in classID order; hparams/{us8k,tau19,vgg,esc50,demo}/ have
one for each data set. Each task keeps the epoch of best accuracy on the validation clips of that task (with replay, of
the tasks so far). After each task the classifier, over all classes, is tested on the tasks so far: accuracy_table.csv,
metrics.json and figures in <output_base>/<experiment_name>+seed_<seed>, the weights in its save/task<t>, where
linclf_train.py judges them. The same command again goes on where it stopped. Keys that matter: task_classes,
replay_num_keep, use_mixup, encoder (with emb_dim), train_duration, batch_size, number_of_epochs, pretrained_weights.

docs/results.md has the commands, times and figures of the runs on ESC-10.
"""

import speechbrain as sb
import torch.nn.functional as F

from utils.evaluation.own_test import TaskTests
from utils.results.save import save_results
from utils.run.exits import user_errors
from utils.run.experiment import Run
from utils.run.keys import TRAINING_KEYS
from utils.training.brain import TaskBrain
from utils.training.loop import Stream


class Supervised(TaskBrain):
    """Cross entropy on one view, whole clips for validation. Legend: B clips, D embedding features, C classes."""

    needs = ("sup_loss", "eval_precision", "classifier", "embedding_batch_size", *TRAINING_KEYS)
    n_views = 1
    validates = True

    def compute_forward(self, batch, stage):
        """Logits."""
        batch = self.prepare_batch(batch)
        out = self.embed_views(batch, stage, n_views=1)  # h1 [B, D]
        out["logits"] = self.modules.classifier(out["h1"])  # [B, C]
        return self.with_memory(out, batch, stage)

    def compute_objectives(self, predictions, batch, stage):
        """Cross entropy, with mixup's label probabilities in training; a scalar."""
        if stage == sb.Stage.TRAIN:
            loss = self.hparams.sup_loss(predictions["logits"], batch.label_probs.data)
            return self.weighted_sum({"sup": loss}, {"sup": 1.0}, predictions, batch)
        labels = batch.label.to(predictions["logits"].device)  # [B]
        self.count(predictions["logits"], labels)
        return F.cross_entropy(predictions["logits"].float(), labels)


if __name__ == "__main__":
    with user_errors():
        run = Run(__doc__, Supervised)  # the command line and the YAML; another run's folder is refused
        run.read_data()  # metadata to a table of clips with tasks; their samples in the store
        stream = Stream(Supervised, run)  # each task's clips and steps
        run.open()  # all input is good: the run's folder, with its settings and record
        tests = TaskTests(run, stream.modules)  # each task's encoder and classifier are tested
        stream.train(after_task=tests)  # one Brain a task, from the weights of the task before
        save_results(tests.results(), run, run.settings, tests.folders)
