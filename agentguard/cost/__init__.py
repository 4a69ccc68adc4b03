"""What calls of models cost: tokens, prices, and the rule for models without one."""
