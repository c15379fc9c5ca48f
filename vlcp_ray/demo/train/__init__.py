"""Train the tiny base models of the demo again, on the train split of the digits."""
