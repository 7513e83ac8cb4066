"""Networks: input layer, backbones (shared-bottom, MMOE, PLE), and the latent head that any of them can wear."""
