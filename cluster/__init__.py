"""Where it runs and what is recorded: Ray, DeepSpeed, MLflow."""
