"""What a job costs: the arithmetic of its models, how fast devices do it, and what that takes in hours and money."""
