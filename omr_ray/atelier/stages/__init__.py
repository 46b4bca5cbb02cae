"""The stages of pretraining, one file each; `omr_ray.atelier.pretrain` runs them in order."""
