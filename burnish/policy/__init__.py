"""Policies: supervised fine-tuning, PPO under an adaptive KL and a guard, DPO."""
