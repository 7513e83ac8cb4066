"""Networks: input layer, backbones (shared-bottom, MMOE, PLE), and the heads that any of them can wear."""
