"""Train the tiny base models again: LLaVA on the train split of the digits, Stable Diffusion on printed glyphs."""
