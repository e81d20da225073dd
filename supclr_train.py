"""Train an encoder on a stream of sound classes: SimCLR, cross entropy with labels, or a weighted sum of both.

"Learning Representations for New Sound Classes With Continual Self-Supervised Learning" (Wang et al., IEEE SPL 2022,
arXiv 2205.07390), sections II and III: loss = ssl_weight * NT-Xent + sup_weight * cross entropy.

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --replay_num_keep=0 --use_mixup=False --ssl_weight=1 --sup_weight=0 --experiment_name=simclr

The weights after task t are in <output_base>/<experiment_name>+seed_<seed>/save/task<t>; linclf_train.py judges them.
The same command again goes on where it stopped. Keys that matter: ssl_weight, sup_weight, replay_num_keep, use_mixup,
encoder (with emb_dim), task_classes, train_duration, batch_size, number_of_epochs.

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


class SupCLR(TaskBrain):
    """NT-Xent on the two views, cross entropy on the first. Legend: B clips, D embedding features, C classes."""

    def compute_forward(self, batch, stage):
        """Embed the views and run the heads whose loss has a weight; the others' weights get no gradient and stay."""
        batch = batch.to(self.device, non_blocking=True)
        h1 = self.embed_view(batch.view1, stage)  # [B, D]
        out = {}
        if self.hparams.ssl_weight:
            h2 = self.embed_view(batch.view2, stage)  # [B, D], on its own: batch statistics are per view
            out["z1"] = self.modules.predictor(self.modules.projector(h1))  # [B, D]
            out["z2"] = self.modules.predictor(self.modules.projector(h2))  # [B, D]
        if self.hparams.sup_weight:
            out["logits"] = self.modules.classifier(h1)  # [B, C]
        return out

    def compute_objectives(self, predictions, batch, stage):
        """The weighted sum of the losses, a scalar."""
        losses = {}
        if "z1" in predictions:
            self.spread.add("z", predictions["z1"], predictions["z2"])
            losses["ssl"] = self.hparams.ssl_loss(predictions["z1"], predictions["z2"])
        if "logits" in predictions:
            losses["sup"] = self.hparams.sup_loss(predictions["logits"], batch.label_probs.data)
        return self.weighted_sum(losses, {"ssl": self.hparams.ssl_weight, "sup": self.hparams.sup_weight})


if __name__ == "__main__":
    with user_errors():
        # 1-2. Command line and YAML to objects.
        hparams_file, run_opts, overrides = parse_arguments(__doc__)
        join_processes(run_opts)  # under torchrun
        needs = ("ssl_weight", "sup_weight", "ssl_loss", "sup_loss", "classifier", *TRAINING_KEYS)
        hparams = load_config(hparams_file, overrides, run_opts, needs)

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
        classifier = hparams["classifier"](n_classes=len(data.classes))
        train_tasks(SupCLR, hparams, run_opts, data, plan, {**hparams["modules"], "classifier": classifier})
