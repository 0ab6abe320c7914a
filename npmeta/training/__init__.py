"""Meta-training: the outer loop, and batches of tasks shared out among workers."""
