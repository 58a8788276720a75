"""From LeRobot folders to chunk transitions."""
