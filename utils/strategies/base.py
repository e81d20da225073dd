"""What a strategy against forgetting is: hooks that all do nothing by default."""


class Strategy:
    """Do nothing against forgetting: fine-tuning, or rehearsal with `replay_num_keep`.

    Subclasses override hooks. A subclass's constructor parameters are filled with the YAML's keys of the same name,
    where the YAML has them; `method` is the trainer's method, None where its loss is not trained.
    `brain` is the task's `utils.training.brain.TaskBrain`: it has `modules`, `method` (None for labels alone), `task`
    (rows, store, folder of the previous task, ...) and `hparams`. Whatever a hook draws at random must be a function of
    (seed, task, epoch, step): the global generator is seeded so before each step.

    Attributes
    ----------
    modules : dict of str to torch.nn.Module
        What the strategy trains, and its state (in buffers). They are moved to the device, saved, resumed and handed on
        to the next task; parameters with `requires_grad` are trained at the scheduled rate.
    uses_memory : bool
        From task 1 on, each step gets a batch of `memory_batch_size` clips kept of earlier tasks, `batch.memory`;
        they are not mixed into the task's own clips.
    embeds_memory : bool
        The memory batch passes the trainer's forward pass too: `out["memory"]`.
    memory_share : float
        The memory batch as a share of the batch, where the YAML's `memory_batch_size` is null.
    adds : tuple of str
        Names of the losses that `losses` adds; the figure of a training run draws them.
    """

    uses_memory = False
    embeds_memory = True
    memory_share = 1.0
    adds: tuple[str, ...] = ()

    def __init__(self):
        self.modules = {}

    def check(self, hparams):
        """Raise InputError where the YAML's settings leave the strategy nothing to work with."""

    def check_taken(self, folders, afresh):
        """Raise InputError where a run takes tasks over from another run, and the strategy can't go on from those.

        Parameters
        ----------
        folders : list of str
            Of these tasks.
        afresh : list of str
            Modules, without those of strategies, that don't take over their weights.
        """

    def before_task(self, brain):
        """Called at each start of a task, also of an interrupted one, before its checkpoint is loaded."""

    def inputs(self, brain, batch):
        """Return the batch to train on, given one with `batch.memory`; views may be mixed here."""
        return batch

    def losses(self, brain, losses, weights, out, batch):
        """Return (losses, weights), dicts by the same names, of which the training loss is the weighted sum.

        Parameters
        ----------
        losses : dict of str to torch.Tensor
            The trainer's own, scalars.
        weights : dict of str to float
        out : dict
            What the forward pass made: `view1`, `view2` (see `models.methods.base.View`), `h1`, `h2`, `z1`, `z2`,
            `logits`, as far as the trainer makes them; `memory`, the same of the memory batch.
        batch : speechbrain.dataio.batch.PaddedBatch
            `id` are clip numbers, `label_probs` [B, C].
        """
        return losses, weights

    def optimizers(self, brain, optimizers):
        """Return those of the optimizers (by name) that step; the others' gradients are thrown away."""
        return optimizers

    def gradients(self, brain):
        """Change gradients, `parameter.grad`, after unscaling and before clipping."""

    def after_step(self, brain):
        """Called after each optimizer step that was not left out."""

    def figures(self, brain):
        """Return figures for the log, called once after each epoch's training: name -> number.

        Counts of an epoch belong into a buffer of `modules`, so that a resume in mid-epoch keeps them, and are reset
        here.
        """
        return {}

    def after_task(self, brain):
        """Called after the last epoch, before the task's weights are saved; files go to `brain.task.folder`."""


class Several(Strategy):
    """Strategies one after the other.

    Parameters
    ----------
    strategies : list of Strategy
    """

    def __init__(self, strategies):
        super().__init__()
        self.strategies = strategies
        for strategy in strategies:
            self.modules |= strategy.modules
        self.uses_memory = any(strategy.uses_memory for strategy in strategies)
        self.embeds_memory = any(strategy.uses_memory and strategy.embeds_memory for strategy in strategies)
        self.memory_share = max((s.memory_share for s in strategies if s.uses_memory), default=1.0)
        self.adds = tuple(name for strategy in strategies for name in strategy.adds)

    def check(self, hparams):
        for strategy in self.strategies:
            strategy.check(hparams)

    def check_taken(self, folders, afresh):
        for strategy in self.strategies:
            strategy.check_taken(folders, afresh)

    def before_task(self, brain):
        for strategy in self.strategies:
            strategy.before_task(brain)

    def inputs(self, brain, batch):
        for strategy in self.strategies:
            batch = strategy.inputs(brain, batch)
        return batch

    def losses(self, brain, losses, weights, out, batch):
        for strategy in self.strategies:
            losses, weights = strategy.losses(brain, losses, weights, out, batch)
        return losses, weights

    def optimizers(self, brain, optimizers):
        for strategy in self.strategies:
            optimizers = strategy.optimizers(brain, optimizers)
        return optimizers

    def gradients(self, brain):
        for strategy in self.strategies:
            strategy.gradients(brain)

    def after_step(self, brain):
        for strategy in self.strategies:
            strategy.after_step(brain)

    def figures(self, brain):
        return {name: value for strategy in self.strategies for name, value in strategy.figures(brain).items()}

    def after_task(self, brain):
        for strategy in self.strategies:
            strategy.after_task(brain)
