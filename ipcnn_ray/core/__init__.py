"""The science: part templates, filter loss, mask, receptive field, metrics. Tensors in, tensors out."""
