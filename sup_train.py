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

"Results" in the README has the commands, times and figures of the runs on ESC-10.
"""

import speechbrain as sb
import torch.nn.functional as F

from datasets.prepare import DATA_KEYS, prepare
from utils.evaluation.own_test import TaskTests
from utils.results.save import save_results
from utils.run.arguments import parse_arguments
from utils.run.config import TRAINING_KEYS, load_config
from utils.run.exits import user_errors
from utils.run.folder import LOG_CONFIG, check_run_folder, open_run_folder, run_settings
from utils.run.processes import join_processes, main_first
from utils.run.record import save_versions
from utils.training.brain import TaskBrain
from utils.training.loop import plan_tasks, train_tasks


class Supervised(TaskBrain):
    """Cross entropy on one view, whole clips for validation. Legend: B clips, D embedding features, C classes."""

    n_views = 1

    def compute_forward(self, batch, stage):
        """Logits."""
        batch = batch.to(self.device, non_blocking=True)
        h = self.embed_view(batch.view1, stage)  # [B, D]
        return self.modules.classifier(h)  # [B, C]

    def compute_objectives(self, predictions, batch, stage):
        """Cross entropy, with mixup's label probabilities in training; a scalar."""
        if stage == sb.Stage.TRAIN:
            loss = self.hparams.sup_loss(predictions, batch.label_probs.data)
            return self.weighted_sum({"sup": loss}, {"sup": 1.0})
        labels = batch.label.to(predictions.device)  # [B]
        self.count(predictions, labels)
        return F.cross_entropy(predictions.float(), labels)


if __name__ == "__main__":
    with user_errors():
        # 1-2. Command line and YAML to objects.
        hparams_file, run_opts, overrides = parse_arguments(__doc__)
        join_processes(run_opts)  # under torchrun
        needs = ("sup_loss", "eval_precision", "classifier", "embedding_batch_size", *TRAINING_KEYS)
        hparams = load_config(hparams_file, overrides, run_opts, needs)

        # 3. Another run's folder is refused.
        settings = run_settings(hparams_file, overrides, run_opts, hparams)
        check_run_folder(hparams["output_folder"], settings, hparams["overwrite"])

        # 4-5. Metadata to a table of clips with tasks; their samples in the store.
        data = main_first(prepare)(*(hparams[key] for key in DATA_KEYS))
        plan = plan_tasks(hparams, run_opts, data, validate=True)

        # 6. All input is good: the run's folder, with its settings and versions.
        open_run_folder(hparams["output_folder"], settings, hparams["overwrite"])
        sb.create_experiment_directory(
            hparams["output_folder"], hparams_file, overrides, log_config=LOG_CONFIG, save_env_desc=False
        )
        save_versions(hparams, run_opts, data)

        # 7-12. One Brain a task, from the weights of the task before; each task's encoder and classifier are tested.
        classifier = hparams["classifier"](n_classes=len(data.classes))
        modules = {**hparams["modules"], "classifier": classifier}
        tests = TaskTests(hparams, run_opts, data, modules)
        train_tasks(Supervised, hparams, run_opts, data, plan, modules, after_task=tests)
        save_results(tests.results(), hparams, data, settings, settings, tests.folders)
