"""Train an encoder and a classifier on a stream of sound classes with labels.

Class-incremental training of "Learning Representations for New Sound Classes With Continual Self-Supervised Learning"
(Wang et al., IEEE SPL 2022, arXiv 2205.07390), section III: the supervised baseline. With all classes in one task it is
offline training, the upper bound.

    python sup_train.py hparams/sup_train.yaml --data_folder=UrbanSound8K --output_base=results
    python sup_train.py hparams/us8k/sup_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --task_classes="[(0,1,2,3,4,5,6,7,8,9)]" --experiment_name=sup-offline

hparams/sup_train.yaml trains an ECAPA-TDNN on UrbanSound8K in classID order; hparams/{us8k,tau19,vgg,esc50,demo}/ have
a configuration per data set. Each task keeps the epoch with the best accuracy on the task's validation clips (with
replay, on those of the tasks so far). After each task the classifier, over all classes, is tested on the tasks so far.
<output_base>/<experiment_name>+seed_<seed> gets accuracy_table.csv, metrics.json and figures, and its save/task<t> the
weights, for linclf_train.py to evaluate. The same command resumes an interrupted run. Main keys: task_classes,
replay_num_keep, use_mixup, sup_projector, encoder (with emb_dim), train_duration, batch_size, number_of_epochs,
pretrained_weights.

Commands, times and results of the runs on ESC-10: docs/results.md.
"""

import speechbrain as sb
import torch.nn.functional as F

from models.heads import classify
from utils.evaluation.own_test import TaskTests
from utils.results.save import save_results
from utils.run.exits import user_errors
from utils.run.experiment import Run
from utils.run.keys import TRAINING_KEYS
from utils.training.brain import TaskBrain
from utils.training.loop import Stream


class Supervised(TaskBrain):
    """Cross entropy on one view; validation on whole clips. Legend: B clips, D embedding features, C classes."""

    needs = ("sup_loss", "eval_precision", "classifier", "embedding_batch_size", *TRAINING_KEYS)
    n_views = 1
    validates = True

    def compute_forward(self, batch, stage):
        """Compute logits."""
        batch = self.prepare_batch(batch)
        out = self.embed_views(batch, stage, n_views=1)  # h1 [B, D]
        out["logits"] = classify(self.modules, out["h1"])  # [B, C]
        return self.with_memory(out, batch, stage)

    def compute_objectives(self, predictions, batch, stage):
        """Compute the cross entropy, in training with mixup's label probabilities; a scalar."""
        if stage == sb.Stage.TRAIN:
            loss = self.sup_loss(predictions["logits"], batch.label_probs.data)
            return self.weighted_sum({"sup": loss}, {"sup": 1.0}, predictions, batch)
        labels = batch.label.to(predictions["logits"].device)  # [B]
        self.count(predictions["logits"], labels)
        return F.cross_entropy(predictions["logits"].float(), labels)


if __name__ == "__main__":
    with user_errors():
        run = Run(__doc__, Supervised)  # parse the command line, build the YAML's objects, check the run folder
        run.read_data()  # read the metadata to a table of clips with tasks, open the audio store
        stream = Stream(Supervised, run)  # select each task's clips, count its steps
        run.open()  # once all input is checked, make or open the run folder
        tests = TaskTests(run, stream.modules)  # test encoder and classifier after each task
        stream.train(after_task=tests)  # one Brain per task, from the weights of the previous task
        save_results(tests.results(), run, run.settings, tests.folders)
