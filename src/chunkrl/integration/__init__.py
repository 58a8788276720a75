"""What connects to other projects: openpi, LeRobot, and the places their checkpoints are published."""
