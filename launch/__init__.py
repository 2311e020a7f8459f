"""Where it is run: plan, peek, predict, bench."""
