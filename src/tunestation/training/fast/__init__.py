"""The fast step: decoder layers of known families as one hand-written function each, below Trainer and peft.

The modules of transformers and peft stay where they are: they hold the weights, are saved and generate. Only their forward pass in training
is replaced.
"""
