"""A person at the robot: keys, leader arms and who leads when."""
