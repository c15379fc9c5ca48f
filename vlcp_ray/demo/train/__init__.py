"""Train the tiny base models again: LLaVA on the train split of the digits, the others on printed glyphs."""
