"""What RunPod's SDK leaves to a worker."""
