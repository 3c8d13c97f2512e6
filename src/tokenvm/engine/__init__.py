"""One step after another: plan, stage, run, sample, commit."""
