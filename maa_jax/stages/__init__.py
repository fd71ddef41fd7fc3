"""What is trained: one file a stage."""
