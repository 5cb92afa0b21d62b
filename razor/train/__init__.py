"""Training: the LightningModule, its callbacks, and the main job."""
