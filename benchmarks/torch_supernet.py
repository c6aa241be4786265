"""The supernet and its sandwich step written in PyTorch, the way its users would: what benchmarks/peer.py runs against.

    python3 benchmarks/torch_supernet.py FORMAT WORK
    python3 benchmarks/torch_supernet.py FORMAT CODES SIZE IMAGES

The first prints the seconds of a step of the standalone full net and of a sandwich step as JSON; the second those of
evaluating each arch on its own, batch-norm statistics included, in float32 and, where the processor has it, under bf16
autocast. FORMAT is one of PyTorch's memory formats, contiguous_format or channels_last.
"""

import json
import os
import sys

import torch
from torch import nn
import torch.nn.functional as F

import common
from train_step import WORKS, inputs

from resnet48.space.arch import FULL, ArchConfig
from resnet48.system.machine import CPU_INFO, cpu_count

# Those of resnet48/images/datasets.py, which would bring Paddle into the process.
MEAN, DEVIATION = (255 * torch.tensor(values).reshape(1, 3, 1, 1) for values in
                   ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


class ConvNorm(nn.Module):
    """A convolution and its batch norm, of which a subnet uses the first filters."""

    def __init__(self, in_width, width, kernel, stride):
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x, width):
        norm = self.norm
        x = F.conv2d(x, self.conv.weight[:width, :x.shape[1]], None, self.conv.stride, self.conv.padding)
        return F.batch_norm(x, norm.running_mean[:width], norm.running_var[:width], norm.weight[:width],
                            norm.bias[:width], norm.training, norm.momentum, norm.eps)


class Block(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.first = ConvNorm(block.in_width, block.inner_width, 3, block.stride)
        self.second = ConvNorm(block.inner_width, block.out_width, 3, 1)
        if block.projects:
            self.shortcut = ConvNorm(block.in_width, block.out_width, 1, block.stride)

    def forward(self, x, block):
        y = self.second(F.relu(self.first(x, block.inner_width), inplace=True), block.out_width)
        return F.relu(y + (self.shortcut(x, block.out_width) if block.projects else x), inplace=True)


class Supernet(nn.Module):
    def __init__(self, arch, classes):
        super().__init__()
        self.stem = ConvNorm(3, arch.stem, 7, 2)
        self.blocks = nn.ModuleDict({str(block.index): Block(block) for block in arch.blocks()})
        self.head = nn.Linear(arch.out_width, classes)

    def forward(self, x, arch):
        x = F.max_pool2d(F.relu(self.stem(x, arch.stem), inplace=True), 3, 2, 1)
        for block in arch.blocks():
            x = self.blocks[str(block.index)](x, block)
        x = x.mean([2, 3])
        return F.linear(x, self.head.weight[:, :x.shape[1]], self.head.bias)


def normalized(pixels, memory_format):
    return ((pixels - MEAN) / DEVIATION).contiguous(memory_format=memory_format)


def step_seconds(subnets, work, memory_format):
    """Seconds of a step of the first `subnets` of the sandwich: the largest, and those that are distilled from it."""
    torch.manual_seed(0)
    pixels, labels, archs = inputs(work)
    pixels, labels = torch.tensor(pixels), torch.tensor(labels)
    (_, largest), *others = archs[:subnets]
    net = Supernet(work.of(FULL).largest(), work.classes).to(memory_format=memory_format)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=4e-5, fused=True)

    def step():
        images = normalized(pixels, memory_format)
        teacher = net(images, largest)
        F.cross_entropy(teacher, labels).backward()
        target = teacher.detach().softmax(1)
        for _, arch in others:
            F.cross_entropy(net(images, arch), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return common.seconds(step, work.times)


@torch.inference_mode()
def evaluation_seconds(archs, size, images, memory_format, bf16):
    """Seconds of computing the batch-norm statistics of each arch on some images and running it on them."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    subnets = [Supernet(arch, 1000).to(memory_format=memory_format) for arch in archs]
    for norm in (module for subnet in subnets for module in subnet.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0  # the running statistics become those of the batch

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for arch, subnet in zip(archs, subnets):
                for training in (True, False):
                    subnet.train(training)
                    subnet(normalized(pixels, memory_format), arch)

    return common.seconds(run, 2)


def has_bf16():
    """Whether the processor multiplies bfloat16; where it does not, PyTorch takes minutes for what takes seconds."""
    with open(CPU_INFO) as info:
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(info.read().split())


def main(memory_format, work, size=None, images=None):
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cpu_count())))
    memory_format = getattr(torch, memory_format)
    if size:
        archs = [ArchConfig.parse(code) for code in work.split(",")]
        found = {name: evaluation_seconds(archs, int(size), int(images), memory_format, bf16)
                 for name, bf16 in (("float32", False), ("bf16", True)) if not bf16 or has_bf16()}
    else:
        found = {name: step_seconds(subnets, WORKS[work], memory_format)
                 for name, subnets in (("full", 1), ("sandwich", 4))}
    print(json.dumps({**found, "version": torch.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
