"""Train an encoder on a stream of sound classes without labels, by SimSiam.

SimSiam (Chen and He, CVPR 2021, arXiv 2011.10566) over a stream of tasks, as in "Learning Representations for New Sound
Classes With Continual Self-Supervised Learning" (Wang et al., IEEE SPL 2022, arXiv 2205.07390), section II: each view's
prediction is drawn to the other view's projection, which gets no gradient; there are no negatives.

    python simsiam_train.py hparams/simsiam_train.yaml --data_folder=UrbanSound8K --output_base=results

hparams/simsiam_train.yaml trains an ECAPA-TDNN on UrbanSound8K in classID order; hparams/{us8k,tau19,vgg,esc50,demo}/
have one for each data set. The weights after task t are in <output_base>/<experiment_name>+seed_<seed>/save/task<t>;
linclf_train.py judges them. The same command again goes on where it stopped. Keys that matter: encoder (with emb_dim),
replay_num_keep, use_mixup, task_classes, train_duration, batch_size, number_of_epochs, pretrained_weights.

"Results" in the README has the commands, times and figures of the runs on ESC-10.
"""

import speechbrain as sb

from datasets.prepare import DATA_KEYS, prepare
from utils.run.arguments import parse_arguments
from utils.run.config import TRAINING_KEYS, load_config
from utils.run.exits import user_errors
from utils.run.folder import LOG_CONFIG, check_run_folder, open_run_folder, run_settings
from utils.run.processes import join_processes, main_first
from utils.run.record import save_versions
from utils.training.brain import TaskBrain
from utils.training.loop import plan_tasks, train_tasks


class SimSiam(TaskBrain):
    """Negative cosine of predictions and the other view's projections. Legend: B clips, D embedding features."""

    def compute_forward(self, batch, stage):
        """Predictions and projections of both views."""
        batch = batch.to(self.device, non_blocking=True)
        z1 = self.modules.projector(self.embed_view(batch.view1, stage))  # [B, D]
        z2 = self.modules.projector(self.embed_view(batch.view2, stage))  # [B, D], on its own: statistics are per view
        p1, p2 = self.modules.predictor(z1), self.modules.predictor(z2)  # [B, D]
        return p1, p2, z1, z2

    def compute_objectives(self, predictions, batch, stage):
        """The symmetric loss (equation 2), a scalar from -1 to 1; -1 at once is a collapse."""
        p1, p2, z1, z2 = predictions
        self.spread.add("z", z1, z2)
        loss = 0.5 * (self.hparams.cosine_loss(p1, z2) + self.hparams.cosine_loss(p2, z1))
        return self.weighted_sum({"ssl": loss}, {"ssl": 1.0})


if __name__ == "__main__":
    with user_errors():
        # 1-2. Command line and YAML to objects.
        hparams_file, run_opts, overrides = parse_arguments(__doc__)
        join_processes(run_opts)  # under torchrun
        hparams = load_config(hparams_file, overrides, run_opts, needs=("cosine_loss", *TRAINING_KEYS))

        # 3. Another run's folder is refused.
        settings = run_settings(hparams_file, overrides, run_opts, hparams)
        check_run_folder(hparams["output_folder"], settings, hparams["overwrite"])

        # 4-5. Metadata to a table of clips with tasks; their samples in the store.
        data = main_first(prepare)(*(hparams[key] for key in DATA_KEYS))
        plan = plan_tasks(hparams, run_opts, data)

        # 6. All input is good: the run's folder, with its settings and versions.
        open_run_folder(hparams["output_folder"], settings, hparams["overwrite"])
        sb.create_experiment_directory(
            hparams["output_folder"], hparams_file, overrides, log_config=LOG_CONFIG, save_env_desc=False
        )
        save_versions(hparams, run_opts, data)

        # 7-12. One Brain a task, from the weights of the task before.
        train_tasks(SimSiam, hparams, run_opts, data, plan, hparams["modules"])
