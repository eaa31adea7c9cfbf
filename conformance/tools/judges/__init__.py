"""The judges judged: the rules by which others judge a norm, before the kit's mistakes and before honest arithmetic."""
