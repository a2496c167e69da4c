"""Loggers of a run beside its own files: TensorBoard, Weights & Biases, MLflow.

Imports the base modules. The libraries are optional, and each is imported by its
own module when a run starts it. Rank 0 alone logs. A logger never stops or slows a run: each has a
thread with a bounded queue, and is off for the rest of a start after its first error.

======================  ===================================================================
``points``              the lines of ``metrics.jsonl`` as named figures
``base``                what a logger is
``tensorboard``         ``weights_and_biases``, ``mlflow``: the three loggers
``wandb_file``          what W&B has written to a local file
``background``          the thread of one logger, and all loggers of a run
``check``               the reason why the loggers of a configuration cannot start
======================  ===================================================================
"""
