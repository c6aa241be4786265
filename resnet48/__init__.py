"""Rank-consistent weight sharing for the ResNet48 search space, on PaddlePaddle."""

from .system import machine

machine.prepare()  # here, because Paddle reads these settings once, when the first module below imports it
