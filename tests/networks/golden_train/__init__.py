"""Train networks of ours beside the recorded trainings of the official programs."""
