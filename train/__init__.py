"""How it is learned: data, the step, the loop, sharding, optimizers, carry, checkpoints, evaluation."""
