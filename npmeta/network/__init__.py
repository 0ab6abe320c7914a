"""Networks and their derivatives: activations, losses, distances, how a layer holds its weights, the
passes and the differential under each, normalisation, learned structure."""
