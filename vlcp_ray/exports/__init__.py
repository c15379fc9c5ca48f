"""What people take away: a distilled set, its descriptions or its model in the forms that other tools open."""
